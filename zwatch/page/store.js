// The page's state: values by name, with listeners

export function createStore(first) {
	const values = { ...first };
	const listeners = new Map();

	return {
		get: (key) => values[key],

		// Sets a value and calls its listeners; a value that is the same object or primitive changes nothing
		set(key, value) {
			if (Object.is(values[key], value)) return;
			values[key] = value;
			listeners.get(key)?.forEach((listener) => listener(value));
		},

		// Calls a listener now and at each change. Returns a function that stops it
		on(key, listener) {
			if (!listeners.has(key)) listeners.set(key, new Set());
			listeners.get(key).add(listener);
			listener(values[key]);
			return () => listeners.get(key).delete(listener);
		},
	};
}

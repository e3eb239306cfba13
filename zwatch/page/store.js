// The page's state: values by name, with listeners

export function createStore(first) {
	const values = new Map(Object.entries(first));
	const listeners = new Map();

	return {
		get: (key) => values.get(key),

		// Sets a value and calls its listeners; a value that is the same object or primitive changes nothing
		set(key, value) {
			if (Object.is(values.get(key), value)) return;
			values.set(key, value);
			for (const listener of listeners.get(key) ?? []) listener(value);
		},

		// Calls a listener now and at each change. Returns a function that stops it
		on(key, listener) {
			if (!listeners.has(key)) listeners.set(key, new Set());
			listeners.get(key).add(listener);
			listener(values.get(key));
			return () => listeners.get(key).delete(listener);
		},
	};
}

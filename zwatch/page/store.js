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

		// Calls a listener now and at each change of a value, or of one of several ("a b"). Returns a function that stops it
		on(keys, listener) {
			const sets = keys.split(" ").map((key) => listeners.get(key) ?? listeners.set(key, new Set()).get(key));
			for (const set of sets) set.add(listener);
			listener(values[keys]);
			return () => sets.forEach((set) => set.delete(listener));
		},
	};
}

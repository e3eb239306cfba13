// Pictures that this browser keeps: the one in the form, and those that were sent. A browser that keeps nothing finds nothing

const MOST = 24; // pictures that were sent

// Does something with the store "form" or "sent". Returns what it finds
function run(name, work) {
	return new Promise((resolve) => {
		const opening = indexedDB.open("zwatch", 1);
		opening.onupgradeneeded = () => {
			opening.result.createObjectStore("form");
			opening.result.createObjectStore("sent", { autoIncrement: true });
		};
		opening.onerror = () => resolve();
		opening.onsuccess = () => {
			const base = opening.result;
			const change = base.transaction(name, "readwrite");
			const found = work(change.objectStore(name));
			change.oncomplete = () => resolve(found.result);
			change.onabort = () => resolve();
			base.close(); // once that is done
		};
	}).catch(() => undefined);
}

export const find = (key) => run("form", (store) => store.get(key));

// Keeps a value; null is none
export const keep = (key, value) => run("form", (store) => (value ? store.put(value, key) : store.delete(key)));

export function keepSent(value) {
	return run("sent", (store) => {
		const adding = store.add(value);
		adding.onsuccess = () => store.delete(IDBKeyRange.upperBound(adding.result - MOST));
		return adding;
	});
}

export const findSent = async (fits) => (await run("sent", (store) => store.getAll()))?.findLast(fits);

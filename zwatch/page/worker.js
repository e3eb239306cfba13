// Holds the event stream of all tabs: with one each, the seventh would not load (six connections to a server)

const RETRY_MS = 1000;
const EVENTS = ["status", "serving", "queue", "alias", "aliases", "attempt", "loras", "history", "jobs", "job"];

// Makes a stream that begins again by itself. `take(event, text)` gets its events, and "connection": "open", "lost", "locked"
export function createStream(client, take) {
	let source;
	let timer;

	function close() {
		clearTimeout(timer);
		source?.close();
	}

	function connect() {
		close();
		source = new EventSource(`/events?client=${client}`);
		source.onopen = () => take("connection", "open");
		source.onerror = () => {
			// By itself it would try again late, and not after an HTTP error
			close();
			timer = setTimeout(connect, RETRY_MS);
			take("connection", "lost");
		};
		for (const event of EVENTS) source.addEventListener(event, ({ data }) => take(event, data));
	}

	function lock() {
		close();
		take("connection", "locked");
	}

	addEventListener("online", connect);
	return { connect, close, lock };
}

const tabs = new Set();
let stream;

// A tab sends a word. The page itself, which imports this file, gets no such event
self.onconnect = ({ ports: [tab] }) => {
	stream ??= createStream(self.name, (...event) => tabs.forEach((one) => one.postMessage(event)));
	const words = {
		...stream,
		join() {
			tabs.add(tab);
			stream.connect(); // it begins with all that a tab needs
		},
		leave() {
			tabs.delete(tab);
			if (tabs.size === 0) stream.close();
		},
	};
	tab.onmessage = ({ data }) => words[data]();
};

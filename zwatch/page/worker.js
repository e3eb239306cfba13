// Holds the event stream of all tabs. A browser opens six connections to a server: with a stream each, the seventh would not load

import { createStream } from "./stream.js";

const tabs = new Set();
const { connect, close, lock } = createStream(self.name, (...event) => tabs.forEach((tab) => tab.postMessage(event)));

// What a tab can say
const words = {
	connect,
	lock,
	join(tab) {
		tabs.add(tab);
		connect(); // a stream begins with all that the tab needs
	},
	leave(tab) {
		tabs.delete(tab);
		if (tabs.size === 0) close();
	},
};

self.onconnect = ({ ports: [tab] }) => {
	tab.onmessage = ({ data }) => words[data](tab);
};

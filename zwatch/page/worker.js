// Holds the event stream for all tabs of a browser, which opens six connections to a server: the seventh tab would never load

import { createStore } from "./store.js";
import { apply, createStream } from "./stream.js";

const tabs = new Set();
let state; // for tabs that join later
let stream;

function take(event, data) {
	if (event === "jobs") state.set(event, data.jobs); // those that a restart ended concern the tabs that know them
	else apply(state, event, data);
	for (const tab of tabs) tab.postMessage([event, data]);
}

// What a tab can say
const words = {
	join(tab) {
		tabs.add(tab);
		if (tabs.size === 1) {
			state = createStore({ status: null, jobs: [] });
			stream ??= createStream(self.name, take);
			stream.connect();
			return;
		}
		const [connection, status, jobs] = ["connection", "status", "jobs"].map(state.get);
		if (connection) tab.postMessage(["connection", connection]);
		if (status) for (const part of [["status", status], ["jobs", { jobs }]]) tab.postMessage(part);
	},
	leave(tab) {
		tabs.delete(tab);
		if (tabs.size === 0) stream.close();
	},
	connect: () => stream.connect(),
};

self.onconnect = ({ ports: [tab] }) => {
	tab.onmessage = ({ data }) => words[data](tab);
};

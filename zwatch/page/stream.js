// The one event stream. It keeps `connection`, `status` and `jobs` of the store current, and connects again by itself

import { call, clientId, fromJson } from "./api.js";

const FIRST_DELAY = 500;
const LONGEST_DELAY = 4000;

// Follows the server's events for as long as the page is open
export function follow(store) {
	let source = null;
	let delay = FIRST_DELAY;
	let timer = 0;

	function connect() {
		clearTimeout(timer);
		source?.close();
		source = new EventSource(`/events?client=${clientId}`);
		source.addEventListener("open", () => {
			delay = FIRST_DELAY;
			store.set("connection", "open");
		});
		source.addEventListener("error", lost);
		const on = (event, use) => source.addEventListener(event, (message) => use(fromJson(message.data)));
		const part = (changes) => store.set("status", { ...store.get("status"), ...changes });
		on("status", (status) => store.set("status", status));
		on("serving", (serving) => part({ serving }));
		on("queue", (queue) => part({ queue }));
		on("alias", ({ alias, ...state }) => alter(alias, state));
		on("attempt", (attempt) => attempt !== null && alter(attempt.alias, { attempt }));
		on("history", (history) => part({ history: { ...store.get("status")?.history, ...history } }));
		on("jobs", ({ jobs }) => store.set("jobs", reconciled(store.get("jobs"), jobs)));
		on("job", (job) => store.set("jobs", merged(store.get("jobs"), job)));
	}

	function alter(alias, changes) {
		const status = store.get("status") ?? {};
		const aliases = { ...status.aliases, [alias]: { ...status.aliases?.[alias], ...changes } };
		store.set("status", { ...status, aliases });
	}

	function lost() {
		// EventSource would try again by itself, but not after an HTTP error, and only every few seconds
		source.close();
		store.set("connection", "lost");
		timer = setTimeout(connect, delay);
		delay = Math.min(delay * 2, LONGEST_DELAY);
		// It does not say why it failed: a call does, and asks for the token if that is the reason
		call("GET", "/status").catch(() => {});
	}

	addEventListener("locked", () => {
		clearTimeout(timer);
		store.set("connection", "locked");
	});
	addEventListener("unlocked", connect);
	addEventListener("online", connect);
	connect();
}

// Returns the jobs with one of them in its new state. An event without a preview keeps the last preview
export function merged(jobs, job) {
	const known = jobs.find((one) => one.id === job.id);
	if (known === undefined) return [...jobs, job];
	const preview = job.preview ?? known.preview ?? null;
	return jobs.map((one) => (one === known ? { ...known, ...job, preview } : one));
}

/**
 * Returns the server's jobs after a connection, with those that it no longer knows: a restart ended them, and the page says
 * so instead of dropping them.
 */
export function reconciled(known, jobs) {
	const ids = new Set(jobs.map((job) => job.id));
	const gone = known.filter((job) => !ids.has(job.id) && (isUnfinished(job) || job.error?.code === "restarted"));
	return [...gone.map((job) => ({ ...job, state: "failed", error: { code: "restarted", message: "" } })), ...jobs];
}

export const isUnfinished = (job) => job.state === "queued" || job.state === "running";

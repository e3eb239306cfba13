// The one event stream. It keeps `connection`, `status` and `jobs` of the store current, and connects again by itself

import { call, clientId, fromJson } from "./api.js";

const FIRST_DELAY = 500;
const LONGEST_DELAY = 4000;

const altered = (status, alias, changes) => ({ ...status, aliases: { ...status?.aliases, [alias]: { ...status?.aliases?.[alias], ...changes } } });

// The value that each event changes, and how
const EVENTS = {
	connection: ["connection", (old, connection) => connection],
	status: ["status", (old, status) => status],
	serving: ["status", (status, serving) => ({ ...status, serving })],
	queue: ["status", (status, queue) => ({ ...status, queue })],
	alias: ["status", (status, { alias, ...state }) => altered(status, alias, state)],
	attempt: ["status", (status, attempt) => (attempt ? altered(status, attempt.alias, { attempt }) : status)],
	history: ["status", (status, history) => ({ ...status, history: { ...status?.history, ...history } })],
	jobs: ["jobs", (known, { jobs }) => reconciled(known, jobs)],
	job: ["jobs", merged],
};

export function apply(store, event, data) {
	const [key, next] = EVENTS[event];
	store.set(key, next(store.get(key), data));
}

// Follows the server's events for as long as the page is open: through the worker that all tabs share, where there are workers
export function follow(store) {
	let connect;

	function take(event, data) {
		const isNews = event === "connection" && data !== store.get(event);
		apply(store, event, data);
		if (isNews && data === "lost") check();
		// Somebody has logged in, in another tab perhaps
		if (isNews && data === "open") document.getElementById("token")?.closest("dialog").close("ok");
	}

	// An EventSource does not say why it failed: a call does, if the server wants its token
	const check = () => call("GET", "/status").then(() => connect(), () => {});

	const followAlone = () => ({ connect } = createStream(clientId, take));
	try {
		const worker = new SharedWorker("/page/worker.js", { type: "module", name: clientId });
		const say = (word) => worker.port.postMessage(word);
		connect = () => say("connect");
		worker.port.onmessage = ({ data }) => take(...data);
		worker.addEventListener("error", followAlone, { once: true });
		addEventListener("pagehide", () => say("leave"));
		addEventListener("pageshow", ({ persisted }) => persisted && say("join"));
		say("join");
	} catch {
		followAlone();
	}
}

/**
 * Connects to the server's events, and again whenever they end. `take(event, data)` gets them, and as "connection" whether
 * the stream is "open" or "lost". Returns {connect(), close()}.
 */
export function createStream(client, take) {
	let source = null;
	let delay = FIRST_DELAY;
	let timer = 0;

	function connect() {
		clearTimeout(timer);
		if (source?.readyState < EventSource.CLOSED) return;
		source = new EventSource(`/events?client=${client}`);
		source.addEventListener("open", () => {
			delay = FIRST_DELAY;
			take("connection", "open");
		});
		source.addEventListener("error", () => {
			// EventSource would try again by itself, but not after an HTTP error, and only every few seconds
			close();
			timer = setTimeout(connect, delay);
			delay = Math.min(delay * 2, LONGEST_DELAY);
			take("connection", "lost");
		});
		for (const event of Object.keys(EVENTS)) source.addEventListener(event, (message) => take(event, fromJson(message.data)));
	}

	function close() {
		clearTimeout(timer);
		source.close();
	}

	addEventListener("online", () => {
		close();
		connect();
	});
	connect();
	return { connect, close };
}

// Returns the jobs with one of them in its new state. An event without a preview keeps the last preview, until the end
export function merged(jobs, job) {
	const known = jobs.find((one) => one.id === job.id);
	if (known === undefined) return [...jobs, job];
	const preview = isUnfinished(job) ? (job.preview ?? known.preview) : null;
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

// Keeps `connection`, `status` and `jobs` of the store current by the event stream

import { call, clientId, fromJson } from "./api.js";
import { createStream } from "./worker.js";

// Changes what is known of a link: of a share, whose name has an @, or of an alias
function alter(status, name, changes) {
	const kind = name.includes("@") ? "shares" : "aliases";
	return { ...status, [kind]: { ...status[kind], [name]: { ...status[kind]?.[name], ...changes } } };
}

const only = (known = {}, names) => Object.fromEntries(names.filter((name) => name in known).map((name) => [name, known[name]]));

// What is known after each event
const STATUS = {
	status: (old, status) => status,
	serving: (status, serving) => ({ ...status, serving }),
	queue: (status, queue) => ({ ...status, queue }),
	alias: (status, { alias, of, ...state }) => alter(status, alias, of ? { ...state, alias: of } : state),
	// Which ones there are now
	aliases: (status, { aliases, shares }) => ({ ...status, aliases: only(status.aliases, aliases), shares: only(status.shares, shares) }),
	attempt: (status, attempt) => (attempt ? alter(status, attempt.alias, { attempt }) : status),
	loras: (status, { loras, problem }) => ({ ...status, loras, loraFault: problem }),
	history: (status, history) => ({ ...status, history: { ...status.history, ...history } }),
};
const JOBS = { jobs: (known, { jobs }) => reconciled(known, jobs), job: merged };

// Follows the server's events, by the worker that all tabs share if the browser has such
export function follow(store) {
	let say;

	function take(event, text) {
		const data = event === "connection" ? text : fromJson(text);
		if (event in STATUS) store.set("status", STATUS[event](store.get("status"), data));
		else if (event in JOBS) store.set("jobs", JOBS[event](store.get("jobs"), data));
		else store.set(event, data);
		const asked = document.querySelector("[type=password]");
		// A call says why a stream failed, and asks for the token; each tab asks
		if ((data === "lost" || (data === "locked" && !asked)) && !document.hidden) call("GET", "/status").catch(() => {});
		// It was given, perhaps in another tab
		if (data === "open") asked?.closest("dialog").close("ok");
	}

	function followAlone() {
		const stream = createStream(clientId, take);
		say = (word) => stream[word]?.();
		say("connect");
	}

	try {
		const worker = new SharedWorker(new URL("worker.js", import.meta.url), { type: "module", name: clientId });
		say = (word) => worker.port.postMessage(word);
		worker.port.onmessage = ({ data }) => take(...data);
		worker.addEventListener("error", followAlone, { once: true });
		addEventListener("pagehide", () => say("leave"));
		addEventListener("pageshow", ({ persisted }) => persisted && say("join"));
		say("join");
	} catch {
		followAlone();
	}
	addEventListener("locked", () => say("lock"));
	addEventListener("unlocked", () => say("connect"));
}

// Returns the jobs with one in its new state. Without a preview it keeps the last one, until the end
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

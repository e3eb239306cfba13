// The same prompt and seed on another version: found in the history, or drawn

import { rowOfJob, seedText, settingsOf } from "./picture.js";

const SAME = ["prompt", "width", "height", "steps", "negative_prompt", "guidance_scale", "strength"];
const made = ({ source = null, mask = false, loras }) => JSON.stringify([source, mask, loras ?? []]);

// A version that was sealed again under its name is another
function isOtherVersion(one, other) {
	return one.version !== other.version || (one.digest && other.digest && one.digest !== other.digest);
}

function isSameRequest(one, other) {
	return seedText(one) === seedText(other) && made(one) === made(other) && SAME.every((field) => (one[field] ?? other[field]) === (other[field] ?? one[field]));
}

// Returns the version to compare with: what serves, else another that is loaded, else null
export async function findOther({ api, store }, row) {
	if (!row.prompt) return null;
	const serving = store.get("status")?.serving;
	if (serving && isOtherVersion(row, serving)) return { ...serving, model: "current" };
	const { versions } = await api.call("GET", "/versions");
	const loaded = versions.find((one) => one.resident && one.name !== row.version);
	return loaded ? { version: loaded.name, digest: loaded.digest, model: loaded.name } : null;
}

// Returns the history's picture of the same request on another version, or null
export async function findInHistory({ api }, row, other) {
	if (!row.prompt) return null;
	const query = new URLSearchParams({ limit: 500, seed: seedText(row) });
	const { images } = await api.call("GET", `/history?${query}`);
	const fits = (one) => isSameRequest(one, row) && isOtherVersion(one, row) && !(other && isOtherVersion(one, other));
	return images.find(fits) ?? null;
}

// Draws it on the other version; `onJob(job, made)` follows. Returns what stops following
export async function draw({ store, actions }, row, other, onJob) {
	const { id } = await actions.post({ ...settingsOf(row), n: 1, model: other.model }, row);
	let last = null;
	return store.on("jobs", (jobs) => {
		const job = jobs.find((one) => one.id === id);
		if (!job || job === last) return;
		last = job;
		const image = job.images?.at(-1);
		onJob(job, job.state === "done" && image ? rowOfJob(job, image) : null);
	});
}

// The settings of a picture: their limits; kept, shared as a link; the prompts used before

import { fromJson } from "./api.js";
import { el, front } from "./dom.js";

const KEPT = "zwatch.settings";
const PROMPTS = "zwatch.prompts";
const MOST_PROMPTS = 200;
// The largest seed that a request may name
const LAST_SEED = 2n ** 63n - 1n;

// The numbers of a picture: least, most and step. Sides may be left out (null): the version's own size
export const NUMBERS = {
	width: { least: 16, most: 2048, step: 16, optional: true },
	height: { least: 16, most: 2048, step: 16, optional: true },
	steps: { least: 1, most: 100, step: 1 },
	n: { least: 1, most: 16, step: 1 },
	guidance_scale: { least: 0, most: 20, step: "any" },
	quality: { least: 1, most: 100, step: 1 },
	strength: { least: 0, most: 1, step: "any" },
	mask_blur: { least: 0, most: 64, step: 1 },
};
// The weight of a LoRA, and how many a request may have
export const SCALE = { least: -2, most: 2 };
export const MOST_LORAS = 8;

// The settings of a new visitor. `side` is the side of a square of the chosen area (null: the version's own); `image` is null,
// "history:NAME", or "file": one that the browser keeps
export const DEFAULTS = {
	prompt: "", negative_prompt: "", width: null, height: null, side: null, steps: 8, n: 1, seed: "", locked: false,
	guidance_scale: 0, format: "png", quality: 92, image: null, strength: 0.6, mask_blur: 0, loras: [],
};
const REQUEST = ["prompt", "negative_prompt", "width", "height", "steps", "n", "seed", "guidance_scale", "format", "quality"];
const OF_IMAGE = ["image", "strength", "mask_blur"];

// Returns what is wrong, as {field: [string key, parameters]}; empty if all is right
export function problems(settings) {
	const found = {};
	if (!settings.prompt.trim()) found.prompt = ["error.prompt", {}];
	for (const [name, { least, most, step, optional }] of Object.entries(NUMBERS)) {
		const value = settings[name];
		if (value === null && optional) continue;
		const isWrong = !Number.isFinite(value) || value < least || value > most;
		if (isWrong || (step === 1 && value % 1)) {
			found[name] = [step === 1 ? "error.whole" : "error.number", { least, most, found: Number.isFinite(value) ? value : "–" }];
		} else if (value % step) {
			const below = Math.max(least, Math.floor(value / step) * step);
			found[name] = ["error.multiple", { step, below, above: below + step }];
		}
	}
	if (settings.seed !== "" && !(/^\d{1,19}$/.test(settings.seed) && BigInt(settings.seed) + BigInt(Math.trunc(settings.n) || 1) - 1n <= LAST_SEED)) {
		found.seed = ["error.seed", {}];
	}
	return found;
}

// Returns the body of a request for these settings, without what is left to the server. Its image is a name: see `actions.complete`
export function requestOf(settings) {
	const names = [...REQUEST, ...(settings.image ? OF_IMAGE : []), ...(settings.loras.length ? ["loras"] : [])];
	return Object.fromEntries(names.map((name) => [name, settings[name]]).filter(([, value]) => value !== null));
}

// Below 2^32, as the server's own
export const randomSeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0] % (2 ** 32 - NUMBERS.n.most));

// Returns the usable settings of an object from storage, a link or a picture
function accepted(found) {
	const taken = {};
	for (const name of ["prompt", "negative_prompt"]) if (typeof found[name] === "string") taken[name] = found[name].slice(0, 10000);
	for (const name of Object.keys(NUMBERS)) if (Number.isFinite(found[name])) taken[name] = found[name];
	if (/^\d{1,19}$/.test(String(found.seed ?? ""))) taken.seed = String(found.seed);
	if (["png", "jpeg", "webp"].includes(found.format)) taken.format = found.format;
	if (found.image === null || isKept(found.image)) taken.image = found.image;
	if (Array.isArray(found.loras)) taken.loras = found.loras.flatMap(acceptedLora).filter(isFirst).slice(0, MOST_LORAS);
	const wrong = problems({ ...DEFAULTS, prompt: "-", ...taken });
	for (const name of Object.keys(wrong)) delete taken[name];
	return taken;
}

const fits = (text, pattern) => typeof text === "string" && pattern.test(text);
export const isKept = (image) => fits(image, /^history:[\w.-]+$/);

function acceptedLora(found) {
	const { name, scale = 1 } = found ?? {};
	return fits(name, /^\w[\w.-]{0,63}$/) && Number.isFinite(scale) && scale >= SCALE.least && scale <= SCALE.most ? { name, scale } : [];
}

const isFirst = ({ name }, place, all) => all.findIndex((one) => one.name === name) === place;

// Reads JSON from the browser's storage; null if there is none
export function read(name) {
	try {
		return parsed(localStorage.getItem(name));
	} catch {
		return null;
	}
}

function parsed(text) {
	try {
		return fromJson(text ?? "null");
	} catch {
		return null;
	}
}

export function write(name, value) {
	try {
		localStorage.setItem(name, JSON.stringify(value));
	} catch {
	}
}

// Returns a link's fragment that names the settings
export function toFragment(settings) {
	const { image, loras } = settings;
	const values = Object.entries({ ...requestOf({ ...settings, image: isKept(image) ? image : null }), ...(loras.length && { loras: JSON.stringify(loras) }) })
		.filter(([name, value]) => value !== "" && (value !== DEFAULTS[name] || name === "steps"));
	return `#${new URLSearchParams(values)}`;
}

// The prompts used before, the newest last. The text being written is kept as the last
export function promptHistory() {
	let kept = [];
	let place = 0;
	let draft = "";
	// Adds a text to what all windows have kept
	function add(text) {
		const others = [].concat(read(PROMPTS) ?? kept).filter((one) => typeof one === "string" && one !== text);
		kept = [...others, ...(text.trim() ? [text] : [])].slice(-MOST_PROMPTS);
		place = kept.length;
		write(PROMPTS, kept);
	}
	add("");
	return {
		add,
		// Returns the text that many places away, or null at the end. `text` is what stands in the field
		walk(by, text) {
			if (place === kept.length) draft = text;
			let next = place + by;
			if (by < 0 && place === kept.length && kept[next] === text) next -= 1; // it stands in the field already
			if (next < 0 || next > kept.length) return null;
			place = next;
			return kept[place] ?? draft;
		},
		// An earlier text is edited: the text that was being written is kept with the others
		reset() {
			if (place < kept.length) add(draft);
		},
		isWalking: () => place < kept.length,
	};
}

// Loads the settings, keeps them at each change, and defines `actions.use`
export function initSettings({ store, t, announce, actions }) {
	const kept = read(KEPT) ?? {};
	const side = Number.isInteger(kept.side) ? kept.side : null;
	store.set("settings", { ...DEFAULTS, ...accepted(kept), side, locked: kept.locked === true, ...(kept.image === "file" && { image: "file" }) });
	store.on("settings", (settings) => write(KEPT, settings));
	const useFragment = () => {
		const named = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
		for (const name of Object.keys(NUMBERS)) if (name in named) named[name] = Number(named[name]);
		named.loras = parsed(named.loras);
		const linked = accepted(named);
		if (!Object.keys(linked).length) return;
		store.set("settings", { ...DEFAULTS, ...linked, locked: "seed" in linked });
		history.replaceState(null, "", location.pathname + location.search);
	};
	useFragment();
	addEventListener("hashchange", useFragment);

	actions.use = (found, { seedOnly = false } = {}) => {
		const { seed, ...rest } = accepted(found);
		const now = store.get("settings");
		const changes = { ...(seedOnly ? {} : rest), ...(seed === undefined ? {} : { seed, locked: true }) };
		if (!seedOnly && rest.width && rest.height) changes.side = Math.round(Math.sqrt(rest.width * rest.height) / 16) * 16;
		store.set("settings", { ...now, ...changes });
		announce(t(seedOnly ? "used.seed" : "used.all"));
	};
}

// Copies a text to the clipboard. Returns whether that worked
export async function copy(text) {
	try {
		await navigator.clipboard.writeText(text);
		return true;
	} catch {
		// Without HTTPS and off localhost there is no clipboard API
	}
	const area = el("textarea", { class: "visually-hidden", text });
	front().append(area);
	const before = document.activeElement;
	area.select();
	const done = document.execCommand("copy");
	area.remove();
	before?.focus();
	return done;
}

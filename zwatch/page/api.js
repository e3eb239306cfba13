// Calls of the server's API

import { reasoned } from "./i18n.js";

const NAME = "zwatch.client";

// This browser's name towards the server, under which its jobs are found again when the page is opened again
export const clientId = (() => {
	const fresh = `page-${crypto.getRandomValues(new Uint32Array(3)).join("-")}`;
	try {
		const kept = localStorage.getItem(NAME);
		if (kept !== null) return kept;
		localStorage.setItem(NAME, fresh);
	} catch {
	}
	return fresh;
})();

// An answer that is an error, or no answer at all (`status` 0, `code` "unreachable")
export class ApiError extends Error {
	constructor(message, { code = "unknown", param = null, status = 0, retryAfter = null, body = null } = {}) {
		super(message);
		Object.assign(this, { code, param, status, retryAfter, body });
	}
}

let askToken = async () => false;
let asking = null;

export function setTokenPrompt(prompt) {
	askToken = prompt;
}

async function login() {
	dispatchEvent(new Event("locked")); // until the token is given
	asking ??= askToken().finally(() => {
		asking = null;
	});
	const isIn = await asking;
	if (isIn) dispatchEvent(new Event("unlocked"));
	return isIn;
}

// Calls the server and returns its JSON. A body that is a Blob is sent as it is, anything else as JSON
export async function call(method, path, body = undefined) {
	const response = await send(method, path, body);
	if (response.status === 401 && path !== "/login" && (await login())) return read(await send(method, path, body));
	return read(response);
}

async function send(method, path, body) {
	const headers = { Accept: "application/json", "X-Client-Id": clientId };
	const isFile = body instanceof Blob;
	if (body !== undefined && !isFile) headers["Content-Type"] = "application/json";
	try {
		return await fetch(path, { method, headers, body: body === undefined || isFile ? body : toJson(body) });
	} catch (error) {
		throw new ApiError(reasoned("unreachable", error.message), { code: "unreachable" });
	}
}

async function read(response) {
	const text = await response.text();
	let body = null;
	try {
		body = fromJson(text);
	} catch {
		// Not from zwatch: a proxy in front of it, for example
	}
	if (response.ok && body !== null) return body;
	const error = body?.error ?? {};
	const seconds = Number(response.headers.get("Retry-After"));
	throw new ApiError(reasoned(error.code, error.message ?? `${response.status} ${response.statusText}`), {
		code: error.code, param: error.param ?? null, status: response.status, retryAfter: seconds || null, body,
	});
}

// Parses JSON. A whole number beyond 2^53 (a seed) becomes a string of its digits, because a number would be rounded
export function fromJson(text) {
	return JSON.parse(text, (key, value, context) =>
		typeof value === "number" && Number.isInteger(value) && !Number.isSafeInteger(value) ? (context?.source ?? value) : value,
	);
}

// Makes JSON; a seed that is a string of digits is written as a number
export function toJson(body) {
	// A quotation mark inside a text is escaped, so that this matches the field only
	return JSON.stringify(body).replace(/"seed":"(\d+)"/, '"seed":$1');
}

// Calls of the server's API

import { reasoned } from "./i18n.js";

// This browser's name, under which its jobs are found again
export const clientId = (() => {
	const fresh = `page-${crypto.getRandomValues(new Uint32Array(3)).join("-")}`;
	try {
		return (localStorage["zwatch.client"] ??= fresh);
	} catch {
		return fresh;
	}
})();

// The error for an answer, or for none: {message, code, param, status, retryAfter, body}
const failed = (code, message, details) => Object.assign(new Error(reasoned(code, message)), { code, ...details });

let askToken;
let asking = null;

export function setTokenPrompt(prompt) {
	askToken = prompt;
}

async function login() {
	asking ??= askToken().finally(() => (asking = null));
	dispatchEvent(new Event("locked")); // until the token is given
	const isIn = await asking;
	if (isIn) dispatchEvent(new Event("unlocked"));
	return isIn;
}

// Calls the server and returns its JSON. A body that is a file or a form is sent as it is, anything else as JSON
export async function call(method, path, body) {
	const response = await send(method, path, body);
	if (response.status === 401 && path !== "/login" && (await login())) return read(await send(method, path, body));
	return read(response);
}

async function send(method, path, body) {
	const headers = { Accept: "application/json", "X-Client-Id": clientId };
	const isJson = body !== undefined && !(body instanceof Blob || body instanceof FormData);
	if (isJson) headers["Content-Type"] = "application/json";
	try {
		return await fetch(path, { method, headers, body: isJson ? toJson(body) : body });
	} catch (error) {
		throw failed("unreachable", error.message);
	}
}

async function read(response) {
	const text = await response.text();
	let body = null;
	try {
		body = fromJson(text);
	} catch {
		// From a proxy, for example
	}
	if (response.ok && body !== null) return body;
	const { status, statusText, headers } = response;
	const { code, message = `${status} ${statusText}`, param } = body?.error ?? {};
	throw failed(code, message, { param, status, body, retryAfter: Number(headers.get("Retry-After")) || null });
}

// Parses JSON. A whole number beyond 2^53 (a seed) becomes a string: a number would be rounded
export function fromJson(text) {
	return JSON.parse(text, (key, value, context) =>
		Number.isInteger(value) && !Number.isSafeInteger(value) ? (context?.source ?? value) : value,
	);
}

// Makes JSON; a seed that is a string of digits is written as a number
export function toJson(body) {
	// A quotation mark inside a text is escaped, so that this matches the field only
	return JSON.stringify(body).replace(/"seed":"(\d+)"/, '"seed":$1');
}

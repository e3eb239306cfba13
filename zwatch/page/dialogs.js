// Dialogs: a question, the token, the keys

import { call } from "./api.js";
import { el } from "./dom.js";
import { sentence, t } from "./i18n.js";
import { textButton } from "./parts.js";

// Opens a dialog until it closes. Returns a promise of its return value ("" if it was dismissed)
export function open(dialog) {
	document.body.append(dialog);
	dialog.showModal();
	return new Promise((resolve) => {
		dialog.addEventListener("close", () => {
			dialog.remove();
			resolve(dialog.returnValue);
		});
	});
}

// Opens a small dialog with a form; its first element is its name
function openForm(...content) {
	return open(el("dialog", { class: "question", "aria-label": content[0].textContent }, el("form", { method: "dialog" }, content)));
}

const buttons = (...content) => el("div", { class: "dialog-buttons" }, content);

export async function confirm(text, okLabel) {
	return (await openForm(el("p", { text }), buttons(
		el("button", { value: "", class: "quiet", text: t("cancel") }),
		el("button", { value: "ok", class: "primary", text: okLabel })))) === "ok";
}

// Asks for the service's token until it is right. Returns whether the person has logged in
export async function askForToken() {
	const input = el("input", { type: "password", "aria-label": t("token.title"), autocomplete: "current-password", required: true, "aria-describedby": "token-error" });
	const error = el("p", { id: "token-error", class: "error", role: "alert" });
	const close = (value) => input.closest("dialog").close(value);
	const opened = openForm(
		el("h2", { text: t("token.title") }), el("p", { text: t("token.text") }),
		input, error,
		buttons(textButton(t("cancel"), () => close(""), { class: "quiet" }), el("button", { class: "primary", text: t("token.ok") })));
	input.form.addEventListener("submit", async (event) => {
		event.preventDefault();
		try {
			await call("POST", "/login", { token: input.value });
			close("ok");
		} catch (failure) {
			error.textContent = failure.status === 401 ? t("token.wrong") : sentence(failure);
			input.select();
		}
	});
	return (await opened) === "ok";
}

const KEYS = [
	["Ctrl+Enter", "generate"], ["Esc", "keys.cancel"], ["↑", "keys.prompt"], ["← →", "keys.walk"],
	["Enter", "keys.details"], ["/", "keys.search"], ["P", "keys.focus"], ["Del", "detail.delete"], ["C", "detail.copyPrompt"],
	["Z  + − 0 1", "keys.zoom"], ["?", "keys.help"],
];

export function showKeys() {
	if (document.querySelector(".keys")) return;
	const rows = KEYS.map(([keys, text]) => [el("dt", {}, el("kbd", { text: keys })), el("dd", { text: t(text) })]);
	openForm(el("h2", { text: t("keys") }), el("dl", { class: "keys" }, ...rows), buttons(el("button", { class: "primary", text: t("close") })));
}

// Dialogs: a question, the token, the keys

import { call } from "./api.js";
import { el } from "./dom.js";
import { t } from "./i18n.js";

// Opens a dialog that is removed when it closes. Returns a promise of its return value ("" if it was dismissed)
export function open(dialog) {
	document.body.append(dialog);
	dialog.showModal();
	return new Promise((resolve) => {
		dialog.addEventListener("close", () => {
			dialog.remove();
			resolve(dialog.returnValue);
		}, { once: true });
	});
}

export async function confirm(text, okLabel = t("ok")) {
	const cancel = el("button", { value: "", class: "quiet", text: t("cancel") });
	const dialog = el("dialog", { class: "question", "aria-labelledby": "question-text" },
		el("form", { method: "dialog" },
			el("p", { id: "question-text", text }),
			el("div", { class: "dialog-buttons" }, cancel, el("button", { value: "ok", class: "primary", text: okLabel }))));
	return (await open(dialog)) === "ok";
}

// Asks for the service's token until it is right. Returns whether the person has logged in
export async function askForToken() {
	const input = el("input", { type: "password", id: "token", autocomplete: "current-password", required: true, "aria-describedby": "token-error" });
	const error = el("p", { id: "token-error", class: "error", role: "alert" });
	const form = el("form", {},
		el("h2", { id: "token-title", text: t("token.title") }),
		el("p", { text: t("token.text") }),
		el("label", { for: "token", text: t("token.title") }), input, error,
		el("div", { class: "dialog-buttons" },
			el("button", { type: "button", class: "quiet", text: t("cancel"), on: { click: () => dialog.close("") } }),
			el("button", { class: "primary", text: t("token.ok") })));
	const dialog = el("dialog", { class: "question", "aria-labelledby": "token-title" }, form);
	form.addEventListener("submit", async (event) => {
		event.preventDefault();
		try {
			await call("POST", "/login", { token: input.value });
			dialog.close("ok");
		} catch (failure) {
			error.textContent = failure.status === 401 ? t("token.wrong") : failure.message;
			input.select();
		}
	});
	return (await open(dialog)) === "ok";
}

const KEYS = [
	["Ctrl+Enter", "keys.generate"], ["Esc", "keys.cancel"], ["↑", "keys.prompt"], ["← →", "keys.walk"],
	["Enter", "keys.details"], ["/", "keys.search"], ["P", "keys.focus"], ["?", "keys.help"],
];

export function showKeys() {
	if (document.querySelector("dialog[open]")) return;
	const rows = KEYS.map(([keys, text]) => [el("dt", {}, el("kbd", { text: keys })), el("dd", { text: t(text) })]);
	const dialog = el("dialog", { class: "question", "aria-labelledby": "keys-title" },
		el("form", { method: "dialog" },
			el("h2", { id: "keys-title", text: t("keys") }), el("dl", { class: "keys" }, ...rows),
			el("div", { class: "dialog-buttons" }, el("button", { class: "primary", text: t("close") }))));
	open(dialog);
}

// Parts that several views share
import { el, iconButton } from "./dom.js";
import { t } from "./i18n.js";

export function textButton(text, onClick, properties = {}) {
	return el("button", { type: "button", text, on: { click: onClick }, ...properties });
}

// Makes a dialog of a kind ("full …" takes the window) with a title and a button to close it
export function view(kind, title, head, ...body) {
	const dialog = el("dialog", { class: kind, "aria-label": title },
		el("div", { class: "view-head" }, el("h2", { text: title }), head, iconButton("close", t("close"), () => dialog.close())),
		body);
	return dialog;
}

// Closes the views that take the window, so that the form is seen
export function closeViews() {
	for (const dialog of document.querySelectorAll("dialog.full")) dialog.close();
}

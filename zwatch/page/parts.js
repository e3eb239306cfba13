// Parts that several views share
import { el, iconButton, setText } from "./dom.js";
import { number, t } from "./i18n.js";
import strings, { table } from "./strings.js";

// Adds the strings and styles of a part that is loaded later; a style element would need a change of the policy
export function extend(texts, styles) {
	Object.assign(strings, table(texts));
	const sheet = new CSSStyleSheet();
	sheet.replaceSync(styles);
	document.adoptedStyleSheets.push(sheet);
}

export function textButton(text, onClick, properties = {}) {
	return el("button", { type: "button", text, on: { click: onClick }, ...properties });
}

export const decimals = (value) => number(value, { minimumFractionDigits: 2, maximumFractionDigits: 2 });

// The head and the body of a table; a cell is [text, small text]
export function sheet(head, rows) {
	const cell = (tag, scope, [text, more]) => el(tag, { scope }, scope === "col" ? el("strong", { text }) : text, more && el("small", { text: more }));
	return [
		el("thead", {}, el("tr", {}, head.map((one) => (one ? cell("th", "col", one) : el("td"))))),
		el("tbody", {}, rows.map(([name, ...others]) => el("tr", {}, cell("th", "row", name), others.map((one) => cell("td", null, one))))),
	];
}

// Makes a slider {element, input, set(value)}. `use(value)` is told where it is moved; `said(value)` is how a value is shown
export function makeSlider(id, label, { least: min, most: max, step }, use, said = decimals) {
	const input = Object.assign(el("input", { id, type: "range" }), { min, max, step });
	const output = el("span", { "aria-hidden": "true" });
	const set = (value) => {
		input.value = String(value);
		setText(output, said(value));
		input.ariaValueText = said(value);
	};
	input.addEventListener("input", () => {
		set(Number(input.value));
		use(Number(input.value));
	});
	return { input, set, element: el("div", { class: "slider-row" }, el("label", { for: id, text: label }), output, input) };
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

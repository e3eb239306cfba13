// The small pictures of the history

import { el, iconButton, setText } from "./dom.js";
import { t } from "./i18n.js";
import { describe } from "./picture.js";

// Makes the item of a row; an empty one while the row is loaded
export function makeThumb(row, rows, { pick, use }) {
	if (!row) return el("li", { class: "cell", "aria-hidden": "true" }, el("button", { class: "thumb", disabled: true }));
	const image = el("img", { alt: "", decoding: "async", draggable: false });
	image.fetchPriority = "low"; // a person's own calls go first
	const on = { click: (event) => pick(row, event) };
	const button = el("button", { type: "button", class: "thumb", data: { name: row.name }, on }, image);
	const quick = use && el("span", { class: "quick" },
		iconButton("again", t("history.use"), () => use(row, {}), { tabIndex: -1 }),
		iconButton("seed", t("history.useSeed"), () => use(row, { seedOnly: true }), { tabIndex: -1 }));
	const item = el("li", { class: "cell" }, el("span", { class: "mark" }), button, quick);
	image.addEventListener("load", () => item.classList.add("seen"));
	// Asked for again when the server is back
	image.addEventListener("error", () => rows.refresh().then(() => rows.error && image.removeAttribute("src")));
	return item;
}

export function updateThumb(item, index, rows, { isShown }) {
	const [newer, row] = [rows.row(index - 1), rows.row(index)];
	const mark = item.querySelector(".mark");
	const changed = newer !== undefined && (newer.version !== row.version || newer.digest !== row.digest);
	const words = changed ? `. ${t("history.changed", { older: row.version ?? "–", newer: newer.version ?? "–" })}` : "";
	item.classList.toggle("changed", changed);
	item.classList.toggle("shown", isShown(row));
	setText(mark, row.version && (changed || index === 0) ? row.version : "");
	const button = item.querySelector(".thumb");
	button.ariaLabel = describe(row, t) + words;
	button.ariaCurrent = isShown(row);
}

export function loadThumb(item, row, rows) {
	const image = item.querySelector("img");
	if (row && !rows.error && !image.getAttribute("src")) image.src = `${row.url}/thumbnail`;
}

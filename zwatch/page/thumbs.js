// The small pictures of the history, and the strip that scrolls through them

import { el, iconButton, setText } from "./dom.js";
import { t } from "./i18n.js";
import { describe } from "./picture.js";
import { VirtualList } from "./virtual.js";

/**
 * Returns the options of a `VirtualList` of rows of the history: `isShown(row)`, `pick(row, event)` when a picture is pressed;
 * where wanted `use(row, options)`, `broken()` when a thumbnail cannot be loaded, `indexOf(name)`.
 */
export function thumbOptions(rows, { pick, use, broken = () => {}, isShown, indexOf, ...others }) {
	const place = indexOf ?? ((name) => rows().findIndex((row) => row.name === name));
	return {
		indexOf: place,
		keyOf: (index) => rows()[index].name,
		make: (index) => makeThumb(rows()[index], { pick, use, broken }),
		update: (item, index) => updateThumb(item, rows()[index], rows()[index - 1], isShown(rows()[index])),
		settled: (item, index) => loadThumb(item, rows()[index]),
		onEnd: () => {},
		onActive: () => {},
		...others,
	};
}

// Makes a strip of pictures. Returns {scroller, list, virtual, refresh()}; new rows may come before the others
export function createStrip(rows, { label, ...doing }) {
	const list = el("ul", { class: "strip-list", "aria-label": label });
	const scroller = el("div", { class: "strip-scroller" }, list);
	const layout = () => ({ columns: 1, side: list.clientHeight, gap: 8 });
	const virtual = new VirtualList(scroller, list, { horizontal: true, layout, ...thumbOptions(rows, doing) });
	return { scroller, list, virtual, refresh: (added = 0) => virtual.setCount(rows().length, added) };
}

function makeThumb(row, { pick, use, broken }) {
	const image = el("img", { alt: "", decoding: "async", draggable: false });
	image.fetchPriority = "low"; // a person's own calls go first
	const click = (event) => pick(row, event);
	const button = el("button", { type: "button", class: "thumb", data: { name: row.name }, on: { click } }, image);
	const quick = use && el("span", { class: "quick" },
		iconButton("again", t("history.use"), () => use(row, {}), { tabIndex: -1 }),
		iconButton("seed", t("history.useSeed"), () => use(row, { seedOnly: true }), { tabIndex: -1 }));
	const item = el("li", { class: "cell" }, el("span", { class: "mark" }), button, quick);
	image.addEventListener("load", () => item.classList.add("seen"));
	image.addEventListener("error", broken);
	return item;
}

function updateThumb(item, row, newer, isShown) {
	const mark = item.querySelector(".mark");
	const changed = newer !== undefined && (newer.version !== row.version || newer.digest !== row.digest);
	const words = changed ? t("history.changed", { older: row.version ?? "–", newer: newer.version ?? "–" }) : "";
	item.classList.toggle("changed", changed);
	item.classList.toggle("shown", isShown);
	setText(mark, row.version && (changed || newer === undefined) ? row.version : "");
	const button = item.querySelector(".thumb");
	button.ariaLabel = changed ? `${describe(row, t)}. ${words}` : describe(row, t);
	button.ariaCurrent = isShown;
}

// Only what has stayed in view is loaded: what is scrolled past costs the server nothing
function loadThumb(item, row) {
	const image = item.querySelector("img");
	if (!image.getAttribute("src")) image.src = `${row.url}/thumbnail`;
}

// All pictures in a grid, searched by words, version and seed

import { openDetail } from "./detail.js";
import { open } from "./dialogs.js";
import { el, setText, show } from "./dom.js";
import { number, percent, sentence, t } from "./i18n.js";
import { textButton, view } from "./parts.js";
import { shownRow } from "./picture.js";
import { HistoryRows } from "./rows.js";
import { VirtualList } from "./virtual.js";

const PAUSE_MS = 200; // between the last key and the search
const INDEXING_MS = 3000;

export function openSearch(gallery) {
	if (document.querySelector("dialog.search")) return;
	const { ctx, lists } = gallery;
	let timer = 0;
	let again = 0;
	const named = (key) => ({ placeholder: t(key), "aria-label": t(key) });
	const words = el("input", { type: "search", ...named("search.words") });
	const version = el("select", { "aria-label": t("detail.version") }, el("option", { value: "", text: t("search.anyVersion") }));
	const seed = el("input", { inputmode: "numeric", ...named("search.seedLabel") });
	const form = el("form", { class: "search-form", role: "search" }, words, version, seed, el("input", { type: "submit", hidden: true }));
	const state = el("p", { class: "count search-state", "aria-live": "polite" });
	const remove = textButton(t("history.deleteAll"), () => gallery.deleting.all(found.total), { class: "quiet danger", hidden: true });
	const list = el("ul", { class: "grid-list", "aria-label": t("search.list") });
	const scroller = el("div", { class: "grid-scroller" }, list);
	const found = new HistoryRows(ctx.api, gallery.hidden, () => {
		clearTimeout(again);
		drawState(state, remove, found);
		addVersions(version, found.rows.map((row) => row.version));
		grid.refresh();
		// What the server has not read yet is found later
		if (found.indexed < 1 && isFiltered(found) && !found.error && lists.has(found)) again = setTimeout(() => found.refresh(), INDEXING_MS);
	});
	const grid = new VirtualList(scroller, list, found, {
		layout: () => layout(list.clientWidth),
		isShown: (row) => row.name === shownRow(ctx.store)?.name,
		pick: (row) => openDetail(gallery, found, row),
		use: ctx.actions.reuse,
	});

	function search() {
		clearTimeout(timer);
		const isWrong = !/^\d{0,19}$/.test(seed.value.trim());
		seed.ariaInvalid = isWrong;
		if (isWrong) return setText(state, t("search.wrongSeed"));
		scroller.scrollTop = 0;
		return found.reset({ q: words.value.trim(), version: version.value, seed: seed.value.trim() });
	}

	form.addEventListener("input", () => {
		clearTimeout(timer);
		timer = setTimeout(search, PAUSE_MS);
	});
	form.addEventListener("submit", (event) => {
		event.preventDefault();
		search()?.then(() => grid.reveal(0, true));
	});
	lists.add(found);
	open(view("full search", t("history.all"), [form, state, remove], scroller)).then(() => {
		clearTimeout(timer);
		clearTimeout(again);
		lists.delete(found);
	});
	found.refresh();
	ctx.api.call("GET", "/versions").then(({ versions }) => addVersions(version, versions.map((one) => one.name)), () => {});
	words.focus();
}

function layout(width) {
	const gap = width < 600 ? 4 : 12;
	// A phone shows three in a row, and a large screen no stamps
	const wanted = width < 600 ? 104 : width < 2000 ? 168 : 240;
	const columns = Math.max(3, Math.floor((width + gap) / (wanted + gap)));
	return { columns, gap, side: Math.floor((width - gap * (columns - 1)) / columns) };
}

function drawState(state, remove, found) {
	const { total, error, indexed } = found;
	const filtered = isFiltered(found);
	let text = t("search.count", { count: total, n: number(total) });
	if (error) text = t("history.failed", { reason: sentence(error) });
	else if (total === 0) text = t(filtered ? "search.nothing" : "history.empty");
	if (filtered && indexed < 1) text += ` · ${t("search.indexing", { percent: percent(indexed) })}`;
	setText(state, text);
	state.classList.toggle("error", Boolean(error));
	show(remove, !filtered && total > 0);
}

const isFiltered = (found) => Object.values(found.filter).some(Boolean);

function addVersions(select, names) {
	const known = [...select.options].map((option) => option.value);
	for (const name of new Set(names)) if (name && !known.includes(name)) select.append(el("option", { value: name, text: name }));
}

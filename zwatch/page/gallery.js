// The strip of the history, and what can be done with the picture in the stage

import { createDeleting } from "./deleting.js";
import { openDetail } from "./detail.js";
import { byId, el, icon, iconButton, setText, show } from "./dom.js";
import { number } from "./i18n.js";
import { textButton } from "./parts.js";
import { settingsOf, shownRow } from "./picture.js";
import { HistoryRows } from "./rows.js";
import { openSearch } from "./search.js";
import { createStrip } from "./thumbs.js";

// Builds the strip and the stage's buttons; adds the actions `open(name)`, `search()`, `remove(row)` and `moreRows()`
export function initGallery(ctx) {
	const { store, actions } = ctx;
	const lists = new Set();
	let refresh = () => {};
	const main = new HistoryRows(ctx.api, (added) => {
		store.set("rows", main.rows);
		refresh(added);
	});
	lists.add(main);
	const deleting = createDeleting(ctx, lists, (name) => showAnother(ctx, main, name));
	const gallery = { ctx, main, lists, deleting };
	actions.open = (name) => openDetail(gallery, main, name);
	actions.search = () => openSearch(gallery);
	actions.remove = deleting.one;
	actions.moreRows = () => main.more();
	refresh = buildStrip(ctx, main);
	addTools(ctx);
	followHistory(store, lists);
}

function buildStrip({ t, store, actions }, main) {
	const count = el("span", { class: "count" });
	const words = el("p", { class: "strip-empty", hidden: true });
	let shownName = null;
	const strip = createStrip(() => main.rows, {
		label: t("history"), isShown: (row) => row.name === shownName, indexOf: (name) => main.indexOf(name),
		use: (row, options) => actions.use(settingsOf(row), options), broken: () => main.refresh(), onEnd: () => main.more(),
		onActive: (index) => actions.show(main.rows[index]),
		pick(row, event) {
			const current = shownRow(store);
			if (current?.name === row.name) actions.open(row.name);
			else if (current && (event.ctrlKey || event.metaKey || event.shiftKey)) actions.compare(current, row);
			else actions.show(row);
		},
	});
	byId("strip").append(
		el("div", { class: "strip-head" }, el("h2", { text: t("history") }), count,
			el("div", { id: "strip-buttons" }, textButton(t("history.all"), () => actions.search(), { class: "quiet" }))),
		strip.scroller, words);

	function follow() {
		const name = shownRow(store)?.name ?? null;
		if (name === shownName) return;
		shownName = name;
		const index = main.indexOf(name);
		// A new picture, the first, does not move a strip that is scrolled
		if (index > 0 && !strip.list.contains(document.activeElement)) strip.virtual.reveal(index);
		else strip.refresh();
	}
	store.on("shown", follow);
	store.on("jobs", follow);
	store.on("status", (status) => {
		if (status?.history !== null) return;
		setText(words, t("history.off"));
		show(words, true);
	});

	return (added) => {
		setText(count, main.loaded ? number(main.total) : "");
		const isKnown = main.error ? store.get("connection") === "open" : main.loaded;
		setText(words, main.error ? t("history.failed", { reason: main.error.message }) : t("history.empty"));
		words.classList.toggle("error", main.error !== null);
		show(words, isKnown && main.rows.length === 0);
		strip.refresh(added);
	};
}

// Beside the stage's own buttons, which use the settings of the picture
function addTools({ t, store, actions }) {
	const row = () => shownRow(store);
	const compare = textButton(t("compare"), () => actions.compare(row()), { class: "small", title: t("compare.title") });
	const details = textButton(t("detail"), () => actions.open(row().name), { class: "small" });
	const download = el("a", { class: "icon-button", label: t("detail.download") }, icon("down"));
	const remove = iconButton("trash", t("detail.delete"), () => actions.remove(row()));
	byId("stage-actions").append(compare, details, download, remove);
	const follow = () => {
		const picture = row();
		if (!picture) return;
		download.href = picture.url;
		download.download = picture.name ?? "";
		// A picture that the history does not keep can only be saved
		for (const button of [compare, details, remove]) show(button, Boolean(picture.name));
	};
	store.on("shown", follow);
	store.on("jobs", follow);
}

// The lists follow the server: at each connection, and when the number of pictures or the newest one changes
function followHistory(store, lists) {
	let seen = null;
	const look = () => lists.forEach((list) => list.refresh());
	store.on("connection", () => (seen = null));
	store.on("status", (status) => {
		if (!status?.history || store.get("connection") !== "open") return;
		const now = `${status.history.images} ${status.history.newest ?? ""}`;
		if (now !== seen) look();
		seen = now;
	});
}

// The picture in the stage was deleted (null: all were): the one after it takes its place
function showAnother({ store, actions }, main, name) {
	if (name !== null && shownRow(store)?.name !== name) return;
	const next = main.rows.find((row) => row.name < name) ?? main.rows.at(-1);
	if (next) actions.show(next);
	else store.set("shown", null);
}

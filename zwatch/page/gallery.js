// The strip of the history, and what can be done with the picture in the stage

import { createDeleting } from "./deleting.js";
import { openDetail } from "./detail.js";
import { byId, el, icon, iconButton, setText, show } from "./dom.js";
import { number, sentence } from "./i18n.js";
import { closeViews, textButton } from "./parts.js";
import { settingsOf, shownRow } from "./picture.js";
import { HistoryRows } from "./rows.js";
import { openSearch } from "./search.js";
import { createStrip } from "./virtual.js";
import { createVotes } from "./votes.js";

// Adds `ctx.rows` and the actions `open(row)`, `search`, `remove(row)`, `reuse`, `walk(by)`
export function initGallery(ctx) {
	const { store, actions } = ctx;
	const hidden = new Set();
	const main = new HistoryRows(ctx.api, hidden, () => store.set("rows", main.rows));
	const lists = new Set([main]);
	const deleting = createDeleting(ctx, lists, hidden);
	const gallery = { ctx, lists, hidden, deleting };
	ctx.rows = main;
	actions.open = (row) => openDetail(gallery, main, row);
	actions.search = () => openSearch(gallery);
	actions.remove = deleting.one;
	actions.reuse = (row, options) => {
		closeViews();
		actions.use({ image: null, loras: [], ...settingsOf(row) }, options);
		if (row.source && !options.seedOnly) actions.startFrom({ sent: row });
	};
	// The picture is the one that is changed next
	actions.change = (row) => {
		actions.startFrom(row);
		byId("form").scrollIntoView({ block: "nearest" }); // on a phone
	};
	actions.walk = async (by) => {
		const name = shownRow(store)?.name;
		const index = name ? (await main.find(name)) + by : 0;
		await main.need(index, index + 1);
		if (main.row(index)) actions.show(main.row(index));
	};
	buildStrip(ctx, main);
	addTools(ctx);
	replaceDeleted(ctx, main);
	followHistory(store, lists);
}

function buildStrip({ t, store, actions }, main) {
	const count = el("span", { class: "count" });
	const words = el("p", { class: "strip-empty", hidden: true });
	let shownName = null;
	const strip = createStrip(main, t("history"), {
		isShown: (row) => row.name === shownName, use: actions.reuse, onActive: actions.show,
		pick(row, event) {
			const current = shownRow(store);
			if (current?.name === row.name) actions.open(row);
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
		if (index > 0 && !strip.list.contains(document.activeElement)) strip.reveal(index);
		else strip.refresh();
	}
	store.on("shown jobs", follow);
	store.on("status", (status) => {
		if (status?.history !== null) return;
		setText(words, t("history.off"));
		show(words, true);
	});

	store.on("rows", () => {
		setText(count, main.length === null ? "" : number(main.total));
		const isKnown = main.error ? store.get("connection") === "open" : main.length !== null;
		setText(words, main.error ? t("history.failed", { reason: sentence(main.error) }) : t("history.empty"));
		words.classList.toggle("error", main.error !== null);
		show(words, isKnown && main.total === 0);
		strip.refresh();
	});
}

// Beside the stage's own buttons
function addTools(ctx) {
	const { t, store, actions } = ctx;
	const row = () => shownRow(store);
	const compare = textButton(t("compare"), () => actions.compare(row()), { class: "small", title: t("compare.title") });
	const details = textButton(t("detail"), () => actions.open(row()), { class: "small" });
	const download = el("a", { class: "icon-button", label: t("detail.download") }, icon("down"));
	const remove = iconButton("trash", t("detail.delete"), () => actions.remove(row()));
	const votes = createVotes(ctx);
	const change = iconButton("image", t("use.picture"), () => actions.change(row()));
	byId("stage-actions").append(votes.element, compare, details, change, download, remove);
	const follow = () => {
		const picture = row();
		if (!picture) return;
		votes.draw(store.get("rows").find((one) => one.name === picture.name) ?? picture);
		download.href = picture.url;
		download.download = picture.name ?? "";
		// A picture that the history does not keep can only be saved
		for (const button of [change, compare, details, remove]) show(button, Boolean(picture.name));
	};
	store.on("shown jobs rows", follow);
}

// At each connection, and when the history changes
function followHistory(store, lists) {
	let seen;
	const look = () => {
		const history = store.get("connection") === "open" && store.get("status")?.history;
		const now = history ? JSON.stringify(history) : null;
		if (now && now !== seen) for (const list of lists) list.refresh();
		seen = now;
	};
	store.on("connection status", look);
}

// If the picture in the stage is deleted, the one after it takes its place
function replaceDeleted({ store, actions }, main) {
	let last = null;
	const look = async () => {
		const name = shownRow(store)?.name;
		const known = main.indexOf(name);
		if (known >= 0) last = name;
		if (known >= 0 || !name || name !== last) return;
		last = null;
		// A picture that is not loaded may only be far from what is in view
		const index = (await main.find(name)) + (main.hidden.has(name) ? 0 : 1);
		await main.need(index - 1, index + 1);
		const [newer, older] = [main.row(index - 1), main.row(index)];
		if (shownRow(store)?.name !== name || newer?.name === name) return;
		if (older ?? newer) actions.show(older ?? newer);
		else if (main.total === 0) store.set("shown", null);
	};
	store.on("rows shown", look);
}

// The strip of the history, the newest first, and what can be done with the picture that is shown.

import { createDeleting } from "./deleting.js";
import { openDetail } from "./detail.js";
import { byId, el, setText, show } from "./dom.js";
import { number } from "./i18n.js";
import { settingsOf, shownRow } from "./picture.js";
import { HistoryRows } from "./rows.js";
import { openSearch } from "./search.js";
import { loadThumb, makeThumb, updateThumb } from "./thumbs.js";
import { initTools } from "./tools.js";
import { VirtualList } from "./virtual.js";

/** Builds the strip and the bar of the shown picture; adds the actions `open(name)`, `search()` and `remove(row)`. */
export function initGallery(ctx) {
  const lists = new Set();
  const main = new HistoryRows(ctx.api, (change) => changed(change));
  lists.add(main);
  const strip = buildStrip(ctx, main);
  const gone = (name) => showAnother(ctx, main, name);
  const gallery = { ctx, main, lists, deleting: createDeleting(ctx, lists, gone) };

  function changed(change) {
    ctx.store.set("rows", main.rows);
    strip.refresh(change);
  }

  const { actions } = ctx;
  actions.open = (name) => openDetail(gallery, main, name);
  actions.search = () => openSearch(gallery);
  actions.moreRows = () => main.more();
  actions.remove = (row) => gallery.deleting.one(row);
  strip.all.addEventListener("click", actions.search);
  initTools(ctx);
  followHistory(ctx, lists);
}

function buildStrip(ctx, main) {
  const { t, store, actions } = ctx;
  const count = el("span", { class: "count" });
  const all = el("button", { type: "button", class: "quiet", id: "all-pictures", text: t("history.all") });
  const head = el("div", { class: "strip-head" }, el("h2", { text: t("history") }), count,
    el("div", { class: "strip-buttons", id: "strip-buttons" }, all));
  const list = el("ul", { class: "strip-list", "aria-label": t("history") });
  const scroller = el("div", { class: "strip-scroller" }, list);
  const words = el("p", { class: "strip-empty", hidden: true });
  byId("strip").append(head, scroller, words);

  const doing = {
    use: (row) => actions.use(settingsOf(row), {}),
    useSeed: (row) => actions.use(settingsOf(row), { seedOnly: true }),
    broken: () => main.refresh(),
    pick(row, event) {
      const current = shownRow(store);
      if ((event.ctrlKey || event.metaKey || event.shiftKey) && current && current.name !== row.name) {
        actions.compare(current, row);
      } else if (current?.name === row.name) actions.open(row.name);
      else actions.show(row);
    },
  };
  const virtual = new VirtualList(scroller, list, {
    horizontal: true,
    layout: () => ({ columns: 1, width: list.clientHeight, height: list.clientHeight, gap: 8 }),
    keyOf: (index) => main.rows[index].name,
    indexOf: (name) => main.indexOf(name),
    make: (index) => makeThumb(main.rows[index], doing),
    update: (item, index) => updateThumb(item, main.rows[index], main.rows[index - 1], main.rows[index].name === shownName),
    settled: (item) => settle(item),
    onEnd: () => main.more(),
    onActive: (index) => actions.show(main.rows[index]),
  });

  let shownName = null;
  const settle = (item) => {
    const row = main.rows[main.indexOf(item.querySelector(".thumb").dataset.name)];
    if (row) loadThumb(item, row);
  };
  for (const key of ["shown", "jobs"]) {
    store.on(key, () => {
      const name = shownRow(store)?.name ?? null;
      if (name === shownName) return;
      shownName = name;
      const index = main.indexOf(name);
      if (index >= 0 && !list.contains(document.activeElement)) virtual.reveal(index);
      else virtual.render();
    });
  }
  store.on("connection", () => say());

  function say() {
    setText(count, main.loaded ? number(main.total) : "");
    const text = main.error ? t("history.failed", { reason: main.error.message }) : t("history.empty");
    setText(words, text);
    words.classList.toggle("error", Boolean(main.error));
    show(words, main.rows.length === 0 && (main.loaded || (main.error !== null && store.get("connection") === "open")));
  }

  return {
    all,
    refresh({ added = 0 }) {
      say();
      virtual.setCount(main.rows.length, added);
    },
  };
}

// The list follows the server: at each connection, and when the number of pictures or the newest one changes.
function followHistory(ctx, lists) {
  const { store } = ctx;
  let seen = null;
  const look = () => lists.forEach((list) => list.refresh());
  store.on("status", (status) => {
    const history = status?.history;
    if (history === undefined || store.get("connection") !== "open") return;
    const now = history === null ? "off" : `${history.images} ${history.newest ?? ""}`;
    if (seen !== null && now !== seen) look();
    seen = now;
  });
  store.on("connection", (connection) => {
    if (connection === "open") look();
  });
}

// The picture in the stage was deleted: the one after it takes its place.
function showAnother(ctx, main, name) {
  const current = shownRow(ctx.store);
  if (name !== null && current?.name !== name) return;
  const next = main.rows.find((row) => row.name < name) ?? main.rows.at(-1);
  if (next) ctx.actions.show(next);
  else ctx.store.set("shown", null);
}

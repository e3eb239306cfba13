// The full view of the history: every picture in a grid, searched by words, version and seed.

import { openDetail } from "./detail.js";
import { open } from "./dialogs.js";
import { el, iconButton, setText, show } from "./dom.js";
import { number, percent, t } from "./i18n.js";
import { settingsOf, shownRow } from "./picture.js";
import { HistoryRows } from "./rows.js";
import { loadThumb, makeThumb, updateThumb } from "./thumbs.js";
import { VirtualList } from "./virtual.js";

const PAUSE_MS = 200; // between the last key and the search
const INDEXING_MS = 1000;

/** Opens the full view. `gallery` is {ctx, main, lists, deleting}. */
export function openSearch(gallery) {
  if (document.querySelector("dialog.search")) return;
  const { ctx, lists, deleting } = gallery;
  const parts = build();
  const found = new HistoryRows(ctx.api, (change) => changed(change));
  const grid = buildGrid(gallery, found, parts);
  const filter = () => ({ q: parts.words.value.trim(), version: parts.version.value, seed: parts.seed.value.trim() });
  let timer = 0;

  function search() {
    const { seed } = filter();
    const wrong = seed !== "" && !/^\d{1,19}$/.test(seed);
    parts.seed.setAttribute("aria-invalid", wrong);
    if (wrong) return setText(parts.state, t("search.wrongSeed"));
    return found.reset(filter());
  }

  function changed(change) {
    clearTimeout(timer);
    const filtered = Object.values(filter()).some(Boolean);
    describeState(parts, found, filtered);
    addVersions(parts.version, found.rows.map((row) => row.version));
    if (change.replaced) parts.scroller.scrollTop = 0;
    grid.setCount(found.rows.length, change.added);
    // The server is still reading the pictures: what it has not read yet is found a moment later.
    if (found.indexed < 1 && filtered) timer = setTimeout(() => found.reset(), INDEXING_MS);
  }

  for (const input of [parts.words, parts.seed]) {
    input.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(search, PAUSE_MS);
    });
  }
  parts.version.addEventListener("change", search);
  parts.form.addEventListener("submit", (event) => {
    event.preventDefault();
    clearTimeout(timer);
    search();
    grid.reveal(0, true);
  });
  parts.remove.addEventListener("click", () => deleting.all(found.total));
  lists.add(found);
  open(parts.dialog).then(() => {
    clearTimeout(timer);
    lists.delete(found);
  });
  found.reset({});
  loadVersions(ctx, parts.version);
  parts.words.focus();
}

function build() {
  const words = el("input", { type: "search", id: "search-words", placeholder: t("search.placeholder"), "aria-label": t("search.words") });
  const version = el("select", { "aria-label": t("search.version") }, el("option", { value: "", text: t("search.anyVersion") }));
  const seed = el("input", { type: "text", class: "search-seed", inputmode: "numeric", placeholder: t("search.seed"), "aria-label": t("search.seedLabel") });
  const form = el("form", { class: "search-form", role: "search" }, words, version, seed);
  const state = el("p", { class: "search-state", role: "status" });
  const remove = el("button", { type: "button", class: "quiet danger", text: t("history.deleteAll"), hidden: true });
  const list = el("ul", { class: "grid-list", "aria-label": t("search.list") });
  const scroller = el("div", { class: "grid-scroller" }, list);
  const dialog = el("dialog", { class: "full search", "aria-labelledby": "search-title" },
    el("div", { class: "full-head" },
      el("h2", { id: "search-title", text: t("history.all") }), form, state, remove,
      iconButton("close", t("close"), () => dialog.close())),
    scroller);
  return { dialog, form, words, version, seed, state, remove, scroller, list };
}

function buildGrid(gallery, found, parts) {
  const { actions, store } = gallery.ctx;
  const use = (row, options) => {
    parts.dialog.close();
    actions.use(settingsOf(row), options);
  };
  const doing = {
    use: (row) => use(row, {}),
    useSeed: (row) => use(row, { seedOnly: true }),
    broken: () => found.refresh(),
    pick: (row) => openDetail(gallery, found, row.name),
  };
  return new VirtualList(parts.scroller, parts.list, {
    horizontal: false,
    layout() {
      const width = parts.list.clientWidth;
      const gap = width < 600 ? 4 : 12;
      const columns = Math.max(3, Math.floor((width + gap) / (wanted(width) + gap)));
      const side = Math.floor((width - gap * (columns - 1)) / columns);
      return { columns, width: side, height: side, gap };
    },
    keyOf: (index) => found.rows[index].name,
    indexOf: (name) => found.indexOf(name),
    make: (index) => makeThumb(found.rows[index], doing),
    update(item, index) {
      const row = found.rows[index];
      updateThumb(item, row, found.rows[index - 1], row.name === shownRow(store)?.name);
    },
    settled(item) {
      const row = found.rows[found.indexOf(item.querySelector(".thumb").dataset.name)];
      if (row) loadThumb(item, row);
    },
    onEnd: () => found.more(),
    onActive: () => {},
  });
}

// The side of a picture in the grid, so that a phone shows three in a row and a large screen does not show stamps.
function wanted(width) {
  return width < 600 ? 104 : width < 2000 ? 168 : 240;
}

function describeState(parts, found, filtered) {
  const { total } = found;
  let text = t(filtered ? "search.found" : "search.count", { count: total, n: number(total) });
  if (found.error) text = t("history.failed", { reason: found.error.message });
  else if (total === 0) text = t(filtered ? "search.nothing" : "history.empty");
  if (filtered && found.indexed < 1) text += ` ${t("search.indexing", { percent: percent(found.indexed) })}`;
  setText(parts.state, text);
  parts.state.classList.toggle("error", Boolean(found.error));
  show(parts.remove, !filtered && total > 0);
}

async function loadVersions(ctx, select) {
  try {
    const { versions } = await ctx.api.call("GET", "/versions");
    addVersions(select, versions.map((one) => one.name));
  } catch {
    // The versions of the pictures that are listed can be chosen all the same.
  }
}

function addVersions(select, names) {
  const known = new Set([...select.options].map((option) => option.value));
  for (const name of new Set(names)) {
    if (name && !known.has(name)) select.append(el("option", { value: name, text: name }));
  }
}

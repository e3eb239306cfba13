// One small picture of the history, as the strip and the full view list it.

import { el, iconButton, setText } from "./dom.js";
import { t } from "./i18n.js";
import { describe, thumbnailOf } from "./picture.js";

export const DRAGGED = "application/x-zwatch-picture";

/**
 * Makes the list item of a picture. `doing` has what its buttons do, each with the row: `use`, `useSeed`, and `pick(row, event)`
 * when the picture itself is pressed.
 */
export function makeThumb(row, doing) {
  const image = el("img", { alt: "", decoding: "async", draggable: false });
  image.fetchPriority = "low"; // a person's own calls go first
  const button = el("button", { type: "button", class: "thumb", draggable: true, data: { name: row.name } }, image);
  button.addEventListener("click", (event) => doing.pick(row, event));
  button.addEventListener("dragstart", (event) => event.dataTransfer.setData(DRAGGED, row.name));
  const quick = el("span", { class: "quick" },
    iconButton("again", t("use.all"), () => doing.use(row), { tabIndex: -1 }),
    iconButton("seed", t("use.seed"), () => doing.useSeed(row), { tabIndex: -1 }));
  const item = el("li", { class: "cell" }, el("span", { class: "mark" }), button, quick);
  image.addEventListener("load", () => item.classList.add("seen"));
  image.addEventListener("error", () => {
    item.classList.add("broken");
    doing.broken?.(row);
  });
  return item;
}

/** Brings a picture's item up to date: whether the version changed here, and whether it is the one that is shown. */
export function updateThumb(item, row, newer, isShown) {
  const mark = item.querySelector(".mark");
  const changed = newer !== undefined && (newer.version !== row.version || newer.digest !== row.digest);
  item.classList.toggle("changed", changed);
  item.classList.toggle("shown", isShown);
  setText(mark, row.version && (changed || newer === undefined) ? row.version : "");
  mark.title = changed ? t("history.changed", { older: row.version ?? "–", newer: newer.version ?? "–" }) : "";
  const button = item.querySelector(".thumb");
  const label = changed ? `${describe(row, t)}. ${mark.title}` : describe(row, t);
  if (button.getAttribute("aria-label") !== label) button.setAttribute("aria-label", label);
  if (isShown) button.setAttribute("aria-current", "true");
  else button.removeAttribute("aria-current");
}

/** Loads a picture's thumbnail, once it has stayed in view: what is only scrolled past costs the server nothing. */
export function loadThumb(item, row) {
  const image = item.querySelector("img");
  if (!image.getAttribute("src")) image.src = thumbnailOf(row);
}

// What can be done with the picture in the stage besides using its settings: compare, look closer, keep, delete.

import { byId, el, icon, iconButton, show } from "./dom.js";
import { shownRow } from "./picture.js";

/** Adds the buttons to the stage's own. */
export function initTools({ t, store, actions }) {
  const row = () => shownRow(store);
  const button = (label, run, title = label) => el("button", { type: "button", class: "small", title, text: label, on: { click: run } });
  const compare = button(t("compare"), () => actions.compare(row()), t("compare.title"));
  const download = el("a", { class: "icon-button", title: t("detail.download"), "aria-label": t("detail.download") }, icon("down"));
  const details = button(t("detail"), () => actions.open(row().name));
  const remove = iconButton("trash", t("detail.delete"), () => actions.remove(row()));
  byId("stage-actions").append(compare, details, download, remove);
  const follow = () => {
    const picture = row();
    if (!picture) return;
    download.href = picture.url;
    download.download = picture.name ?? "";
    // A picture that the history does not keep can be looked at and saved only.
    for (const button of [compare, details, remove]) show(button, Boolean(picture.name));
  };
  store.on("shown", follow);
  store.on("jobs", follow);
}

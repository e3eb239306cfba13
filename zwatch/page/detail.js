// The detail view of a picture: large, with everything that made it, and the keyboard through all pictures.

import { open } from "./dialogs.js";
import { el, icon, iconButton, isTyping, setText, show } from "./dom.js";
import { bytes, dateTime, number, t } from "./i18n.js";
import { copyText, curlText, describe, seedText, settingsOf, thumbnailOf } from "./picture.js";
import { toast } from "./toast.js";

/** Opens the detail view at a picture of a list; arrows walk through the list. */
export function openDetail(gallery, list, name) {
  document.querySelector("dialog.detail")?.close();
  const { ctx, deleting } = gallery;
  let row = list.rows[list.indexOf(name)];
  if (!row) return;
  const parts = build();
  const { dialog } = parts;
  const at = () => list.indexOf(row.name);

  function walk(step) {
    const next = list.rows[at() + step];
    if (next) draw(next);
    if (at() + 20 > list.rows.length) list.more().then(() => dialog.open && drawPlace(parts, list, row));
  }

  function draw(next) {
    row = next;
    drawPicture(parts, row);
    drawPlace(parts, list, row);
    parts.facts.replaceChildren(...facts(row));
    parts.prompt.textContent = row.prompt || t("history.noPrompt");
    show(parts.negative, Boolean(row.negative_prompt));
    parts.negative.lastChild.textContent = row.negative_prompt ?? "";
    ctx.announce(describe(row, t));
  }

  function use(options) {
    closeAll();
    ctx.actions.use(settingsOf(row), options);
  }

  function remove() {
    const next = list.rows[at() + 1] ?? list.rows[at() - 1];
    deleting.one(row);
    if (next) draw(next);
    else dialog.close();
  }

  async function copy(text, done) {
    const copied = await copyText(text);
    toast(t(copied ? done : "copy.failed"), { error: !copied });
  }

  const doing = {
    use: () => use({}),
    useSeed: () => use({ seedOnly: true }),
    compare: () => {
      closeAll();
      ctx.actions.compare(row);
    },
    copyPrompt: () => copy(row.prompt ?? "", "detail.promptCopied"),
    copyCurl: () => copy(curlText(row, location.origin, ctx.store.get("token") === true), "detail.curlCopied"),
    remove,
  };
  parts.actions.append(...actionButtons(doing, parts.download));
  parts.previous.addEventListener("click", () => walk(-1));
  parts.next.addEventListener("click", () => walk(1));
  dialog.addEventListener("keydown", (event) => {
    const keys = {
      ArrowLeft: () => walk(-1), ArrowRight: () => walk(1), Home: () => draw(list.rows[0]), Delete: remove,
      c: doing.copyPrompt, z: parts.zoom,
    };
    if (isTyping(event.target) || event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
    event.preventDefault();
    event.stopPropagation();
    keys[event.key]();
  });
  open(dialog).then(() => at() >= 0 && ctx.actions.show(row));
  draw(row);
  parts.next.focus();
}

function closeAll() {
  for (const dialog of document.querySelectorAll("dialog.full[open]")) dialog.close();
}

function build() {
  const image = el("img", { class: "detail-image" });
  const stage = el("div", { class: "detail-stage" }, image);
  const zoom = () => stage.classList.toggle("actual");
  image.addEventListener("click", zoom);
  image.addEventListener("load", () => {
    stage.style.backgroundImage = "none";
  });
  const previous = arrow("‹", t("detail.newer"));
  const next = arrow("›", t("detail.older"));
  const place = el("span", { class: "detail-place" });
  const prompt = el("p", { class: "detail-prompt" });
  const negative = el("div", { class: "detail-negative" }, el("h3", { text: t("detail.negative") }), el("p"));
  const facts = el("dl", { class: "facts" });
  const actions = el("div", { class: "detail-actions" });
  const download = el("a", { class: "button" }, icon("down"), t("detail.download"));
  const dialog = el("dialog", { class: "full detail", "aria-labelledby": "detail-title" },
    el("div", { class: "full-head" },
      el("h2", { id: "detail-title", text: t("detail") }), previous, place, next,
      el("span", { class: "tools-space" }), iconButton("close", t("close"), () => dialog.close())),
    el("div", { class: "detail-body" }, stage,
      el("div", { class: "detail-side" }, el("h3", { text: t("detail.prompt") }), prompt, negative, actions, facts)));
  return { dialog, stage, image, previous, next, place, prompt, negative, facts, actions, download, zoom };
}

function actionButtons(doing, download) {
  const button = (name, label, run, kind = "") =>
    el("button", { type: "button", class: kind, on: { click: run } }, icon(name), label);
  return [
    button("again", t("use.all"), doing.use, "primary"),
    button("seed", t("use.seed"), doing.useSeed),
    button("compare", t("compare"), doing.compare),
    button("copy", t("detail.copyPrompt"), doing.copyPrompt),
    button("copy", t("detail.copyCurl"), doing.copyCurl),
    download,
    button("trash", t("detail.delete"), doing.remove, "danger"),
  ];
}

function drawPicture(parts, row) {
  const { image, stage } = parts;
  stage.classList.remove("actual");
  stage.style.backgroundImage = `url("${thumbnailOf(row)}")`; // until the whole picture is there
  if (row.width && row.height) {
    image.width = row.width;
    image.height = row.height;
  }
  image.src = row.url;
  image.alt = row.prompt || t("history.noPrompt");
  parts.download.href = row.url;
  parts.download.download = row.name;
}

function drawPlace(parts, list, row) {
  const index = list.indexOf(row.name);
  setText(parts.place, t("detail.place", { n: number(index + 1), total: number(list.total) }));
  parts.previous.disabled = index <= 0;
  parts.next.disabled = index >= list.rows.length - 1;
}

function facts(row) {
  const known = (value) => value !== null && value !== undefined && value !== "";
  const pairs = [
    ["detail.version", row.version],
    ["detail.digest", row.digest],
    ["detail.seed", seedText(row)],
    ["detail.size", known(row.width) ? `${row.width} × ${row.height}` : null],
    ["detail.steps", row.steps],
    ["detail.guidance", known(row.guidance_scale) ? number(row.guidance_scale) : null],
    ["detail.format", row.format && known(row.quality) && row.format !== "png" ? `${row.format} ${row.quality}` : row.format],
    ["detail.model", row.model],
    ["detail.bytes", known(row.bytes) ? bytes(row.bytes) : null],
    ["detail.created", row.created && dateTime(row.created)],
    ["detail.file", row.name],
  ];
  return pairs.filter(([, value]) => known(value)).flatMap(([label, value]) => [
    el("dt", { text: t(label) }), el("dd", { class: label === "detail.digest" || label === "detail.file" ? "code" : "", text: String(value) }),
  ]);
}

function arrow(text, label) {
  return el("button", { type: "button", class: "icon-button", title: label, "aria-label": label, text });
}

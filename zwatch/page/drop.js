// A picture that is dropped on the page, pasted or chosen fills in the settings that made it.

import { byId, el, isTyping, show } from "./dom.js";
import { settingsOf } from "./picture.js";
import { DRAGGED } from "./thumbs.js";
import { toast } from "./toast.js";

const MOST_BYTES = 32 * 1024 * 1024; // the most that the server reads

/** Lets a picture be dropped on the page, pasted, or chosen with a button. */
export function initDrop(ctx) {
  const { t } = ctx;
  const shade = el("div", { class: "drop-shade", hidden: true }, el("p", { text: t("drop.here") }));
  document.body.append(shade);
  let depth = 0; // of elements that the pointer is over: entering one comes before leaving another

  const shadeIf = (visible) => {
    depth = visible ? depth : 0;
    show(shade, visible);
  };
  addEventListener("dragenter", (event) => {
    if (!isPicture(event.dataTransfer)) return;
    depth++;
    shadeIf(true);
  });
  addEventListener("dragleave", (event) => {
    if (isPicture(event.dataTransfer) && --depth <= 0) shadeIf(false);
  });
  addEventListener("dragover", (event) => {
    // Without this the browser would leave the page and show the file.
    if (isPicture(event.dataTransfer)) event.preventDefault();
  });
  addEventListener("drop", (event) => {
    if (!isPicture(event.dataTransfer)) return;
    event.preventDefault();
    shadeIf(false);
    const name = event.dataTransfer.getData(DRAGGED);
    const row = ctx.store.get("rows").find((one) => one.name === name);
    if (row) fill(ctx, settingsOf(row), t("drop.filled"));
    else read(ctx, event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const [file] = event.clipboardData?.files ?? [];
    if (!file || (isTyping(event.target) && event.clipboardData.types.includes("text/plain"))) return;
    event.preventDefault();
    read(ctx, file);
  });
  addChooser(ctx);
}

function isPicture(data) {
  return data.types.includes("Files") || data.types.includes(DRAGGED);
}

function addChooser(ctx) {
  const input = el("input", { type: "file", accept: "image/png,image/jpeg,image/webp", hidden: true, "aria-label": ctx.t("drop.choose") });
  input.addEventListener("change", async () => {
    const [file] = input.files;
    input.value = ""; // the same file can be chosen again
    await read(ctx, file);
  });
  const choose = el("button", { type: "button", class: "quiet", title: ctx.t("drop.title"), text: ctx.t("drop.choose"), on: { click: () => input.click() } });
  byId("strip-buttons").prepend(choose, input);
}

async function read(ctx, file) {
  const { t } = ctx;
  if (!file) return;
  const refuse = (reason) => toast(t("drop.failed", { name: file.name || t("drop.picture"), reason }), { error: true });
  if (file.size > MOST_BYTES) return refuse(t("drop.tooLarge"));
  try {
    const found = await ctx.api.call("POST", "/api/picture_settings", file);
    const text = found.version ? t("drop.filledVersion", { version: found.version }) : t(`drop.filled.${found.source}`);
    fill(ctx, found.settings, text);
  } catch (error) {
    refuse(error.message);
  }
}

function fill(ctx, settings, text) {
  for (const dialog of document.querySelectorAll("dialog.full[open]")) dialog.close();
  ctx.actions.use(settings, {});
  toast(text);
}

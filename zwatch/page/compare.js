// The comparison of two pictures. "Compare" on one picture shows it beside the same prompt and seed on the other version.

import { draw, findInHistory, findOther, isOtherVersion, isSameRequest } from "./counterpart.js";
import { open } from "./dialogs.js";
import { el, iconButton, setText, show } from "./dom.js";
import { number, percent, t } from "./i18n.js";
import { createPanes } from "./panes.js";
import { describe, seedText } from "./picture.js";
import { loadThumb, makeThumb, updateThumb } from "./thumbs.js";
import { VirtualList } from "./virtual.js";

const STEP = 40; // pixels that an arrow moves the pictures

/** Adds the action `compare(row, other)`; without `other` it finds or draws the picture on the other version. */
export function initCompare(ctx) {
  ctx.actions.compare = (row, other) => {
    if (!document.querySelector("dialog.compare")) new Comparison(ctx, row, other).start();
  };
}

class Comparison {
  constructor(ctx, row, other) {
    this.ctx = ctx;
    this.rows = { left: row, right: other ?? null };
    this.chosen = "right"; // the side that the strip below sets
    this.other = null;
    this.stop = null;
    this.turn = 0; // an answer for pictures that are no longer compared is dropped
    this.build();
  }

  start() {
    open(this.dialog).then(() => this.end());
    this.panes.range.focus();
    this.drawAll();
    if (this.rows.right) this.offer();
    else this.onOther();
  }

  end() {
    this.turn++;
    this.stop?.();
    this.unfollow();
  }

  build() {
    this.zoom = el("output", { class: "zoom-level" });
    this.panes = createPanes((scale) => setText(this.zoom, percent(scale)));
    this.same = el("button", { type: "button", class: "same-request", hidden: true, on: { click: () => this.onOther() } });
    this.note = el("p", { class: "compare-note", role: "status" });
    const modes = ["over", "beside"].map((mode) =>
      el("button", { type: "button", "aria-pressed": String(mode === "over"), text: t(`compare.${mode}`), on: { click: () => this.setMode(mode) } }));
    this.modes = { over: modes[0], beside: modes[1] };
    const zooms = [["−", "compare.smaller", () => this.panes.zoomBy(1 / 1.5)], ["+", "compare.larger", () => this.panes.zoomBy(1.5)]]
      .map(([text, label, run]) => el("button", { type: "button", class: "icon-button", text, title: t(label), "aria-label": t(label), on: { click: run } }));
    this.captions = { left: this.caption("left"), right: this.caption("right") };
    this.dialog = el("dialog", { class: "full compare", "aria-labelledby": "compare-title" },
      el("div", { class: "full-head" },
        el("h2", { id: "compare-title", text: t("compare") }),
        el("div", { class: "segments", role: "group", "aria-label": t("compare.view") }, modes),
        el("div", { class: "zooms", role: "group", "aria-label": t("compare.zoom") }, zooms[0], this.zoom, zooms[1],
          el("button", { type: "button", class: "quiet", text: t("compare.fit"), on: { click: () => this.panes.fit() } }),
          el("button", { type: "button", class: "quiet", text: t("compare.actual"), on: { click: () => this.panes.actual() } })),
        iconButton("flip", t("compare.swap"), () => this.swap()),
        el("span", { class: "tools-space" }), this.same,
        iconButton("close", t("close"), () => this.dialog.close())),
      this.panes.element,
      el("div", { class: "compare-foot" }, this.captions.left.button, this.note, this.captions.right.button),
      this.buildStrip());
    this.dialog.addEventListener("keydown", (event) => this.key(event));
  }

  caption(side) {
    const title = el("strong");
    const text = el("span");
    const button = el("button", { type: "button", class: `pane-caption ${side}`, title: t("compare.choose"), on: { click: () => this.choose(side) } }, title, text);
    return { button, title, text };
  }

  buildStrip() {
    const rows = () => this.ctx.store.get("rows");
    const list = el("ul", { class: "strip-list", "aria-label": t("compare.list") });
    const scroller = el("div", { class: "strip-scroller" }, list);
    const place = (name) => rows().findIndex((row) => row.name === name);
    this.strip = new VirtualList(scroller, list, {
      horizontal: true,
      layout: () => ({ columns: 1, width: list.clientHeight, height: list.clientHeight, gap: 8 }),
      keyOf: (index) => rows()[index].name,
      indexOf: place,
      make: (index) => makeThumb(rows()[index], { pick: (row) => this.set(this.chosen, row), use: () => {}, useSeed: () => {} }),
      update: (item, index) => updateThumb(item, rows()[index], rows()[index - 1], rows()[index].name === this.rows[this.chosen]?.name),
      settled: (item) => loadThumb(item, rows()[place(item.querySelector(".thumb").dataset.name)]),
      onEnd: () => this.ctx.actions.moreRows(),
      onActive: () => {},
    });
    let count = rows().length;
    this.unfollow = this.ctx.store.on("rows", (now) => {
      this.strip.setCount(now.length, Math.max(0, now.length - count));
      count = now.length;
    });
    return scroller;
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = { "+": () => this.panes.zoomBy(1.5), "=": () => this.panes.zoomBy(1.5), "-": () => this.panes.zoomBy(1 / 1.5), 0: () => this.panes.fit(), 1: () => this.panes.actual(), x: () => this.swap() };
    const moves = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };
    if (event.shiftKey && event.key in moves) keys[event.key] = () => this.panes.move(...moves[event.key]);
    if (!(event.key in keys)) return;
    event.preventDefault();
    keys[event.key]();
  }

  setMode(mode) {
    for (const [name, button] of Object.entries(this.modes)) button.setAttribute("aria-pressed", String(name === mode));
    this.panes.setMode(mode);
  }

  swap() {
    if (this.stop) return; // one of them is still being drawn
    this.rows = { left: this.rows.right, right: this.rows.left };
    this.drawAll();
  }

  choose(side) {
    this.chosen = side;
    this.drawCaptions();
    this.strip.render();
  }

  set(side, row) {
    this.turn++;
    this.stop?.();
    this.stop = null;
    this.rows[side] = row;
    this.say("");
    this.drawAll();
    this.offer();
  }

  /** Offers the other version, unless it is what the other side shows. */
  async offer() {
    const turn = this.turn;
    const { left, right } = this.rows;
    this.other = await findOther(this.ctx, left).catch(() => null);
    if (turn !== this.turn) return;
    const isShown = right && isSameRequest(left, right) && isOtherVersion(left, right);
    show(this.same, this.other !== null && !isShown);
    if (this.other) setText(this.same, t("compare.same", { version: this.other.version }));
  }

  /** Shows the same prompt and seed on the other version: from the history, or as it is drawn. */
  async onOther() {
    const turn = ++this.turn;
    const row = this.rows.left;
    show(this.same, false);
    try {
      const other = await findOther(this.ctx, row);
      const found = await findInHistory(this.ctx, row, other);
      if (turn !== this.turn) return;
      if (found) this.pair(row, found);
      else if (other) await this.drawOn(other, turn);
      else this.withoutOther(row);
    } catch (error) {
      if (turn === this.turn) this.fail(error.message);
    }
  }

  async drawOn(other, turn) {
    const row = this.rows.left;
    this.rows.right = null;
    this.drawAll();
    setText(this.captions.right.title, other.version);
    this.panes.set("right", { text: other.version, content: [el("p", { text: t("compare.asked", { version: other.version }) })] });
    const stop = await draw(this.ctx, row, other, (job, made) => {
      if (turn !== this.turn) return;
      if (made) {
        this.stop = null;
        this.pair(row, made);
        this.ctx.announce(describe(made, t));
      } else if (job.state === "failed" || job.state === "cancelled") {
        this.stop = null;
        this.fail(job.error?.message ?? t("compare.cancelled"));
      } else this.drawProgress(job, other);
    });
    if (turn === this.turn) this.stop = stop;
    else stop();
  }

  drawProgress(job, other) {
    const waits = job.state === "queued";
    const text = waits ? t("compare.waits", { count: job.position ?? 0, n: job.position ?? 0 })
      : t("compare.draws", { version: other.version, step: number(job.step), steps: number(job.steps) });
    const bar = el("progress", { max: job.steps, value: job.step, "aria-label": text });
    this.panes.set("right", { url: job.preview ?? null, text: other.version, content: [el("p", { text }), bar] });
  }

  // The older name on the left: "v1 | v2".
  pair(row, other) {
    const first = (row.version ?? "").localeCompare(other.version ?? "", undefined, { numeric: true }) <= 0;
    this.rows = first ? { left: row, right: other } : { left: other, right: row };
    this.say("");
    this.drawAll();
  }

  withoutOther(row) {
    const rows = this.ctx.store.get("rows");
    const index = rows.findIndex((one) => one.name === row.name);
    this.rows.right = rows[index + 1] ?? rows[index - 1] ?? null;
    this.drawAll();
    this.say(t(row.prompt ? "compare.noOther" : "compare.noPrompt", { version: row.version ?? "–" }));
  }

  fail(reason) {
    this.panes.set("right", { content: [el("p", { class: "error", role: "alert", text: t("compare.failed", { reason }) })] });
    this.offer();
  }

  say(text) {
    setText(this.note, text);
  }

  drawAll() {
    for (const side of ["left", "right"]) {
      const row = this.rows[side];
      this.panes.set(side, row ? { url: row.url, alt: describe(row, t), text: row.version ?? "" } : {});
    }
    this.drawCaptions();
    this.strip.render();
  }

  drawCaptions() {
    const { left, right } = this.rows;
    for (const side of ["left", "right"]) {
      const { button, title, text } = this.captions[side];
      const row = this.rows[side];
      button.setAttribute("aria-pressed", String(this.chosen === side));
      setText(title, row?.version ?? "–");
      setText(text, row ? captionText(row, left && right && isSameRequest(left, right)) : "");
    }
  }
}

function captionText(row, isSame) {
  const seed = t("compare.seed", { seed: seedText(row) });
  return isSame ? `${seed} · ${row.prompt}` : `${seed} · ${row.width ?? "–"} × ${row.height ?? "–"} · ${row.prompt ?? ""}`;
}

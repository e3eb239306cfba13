// The panel of versions: what there is, what serves, what the last attempts came to; Deploy and Roll back.

import { open } from "./dialogs.js";
import { byId, el, iconButton, setText, show } from "./dom.js";
import { dateTime, t, time } from "./i18n.js";
import { drawRow, makeRow } from "./versionrow.js";

const PAUSE_MS = 250; // several events tell of one change

/** Makes the button "Versions" open the panel; adds the action `versions()`. */
export function initVersions(ctx) {
  const button = byId("versions-button");
  button.setAttribute("aria-haspopup", "dialog");
  ctx.actions.versions = () => {
    if (!document.querySelector("dialog.versions")) new Panel(ctx).start();
  };
  button.addEventListener("click", ctx.actions.versions);
}

class Panel {
  constructor(ctx) {
    this.ctx = ctx;
    this.alias = "current";
    this.versions = null;
    this.attempts = [];
    this.busy = null; // the version whose deploy was asked for here
    this.rows = new Map();
    this.seen = "";
    this.timer = 0;
    this.build();
  }

  start() {
    open(this.dialog).then(() => {
      clearTimeout(this.timer);
      this.unfollow();
    });
    this.unfollow = this.ctx.store.on("status", (status) => this.follow(status));
    this.load();
  }

  build() {
    this.serving = el("p", { class: "versions-serving" });
    this.fault = el("p", { class: "error", hidden: true });
    this.load_ = el("button", { type: "button", class: "primary", text: t("versions.load"), hidden: true, on: { click: () => this.loadModel() } });
    this.back = el("button", { type: "button", text: t("versions.rollback"), on: { click: () => this.rollBack() } });
    this.aliases = el("select", { "aria-label": t("versions.alias"), hidden: true, on: { change: () => this.choose() } });
    this.result = el("p", { class: "versions-result", role: "status", hidden: true });
    this.table = el("div", { role: "table", class: "versions-list", "aria-label": t("versions") });
    this.words = el("p", { class: "versions-words", text: t("versions.reading") });
    this.dialog = el("dialog", { class: "drawer versions", "aria-labelledby": "versions-title" },
      el("div", { class: "full-head" },
        el("h2", { id: "versions-title", text: t("versions") }), el("span", { class: "tools-space" }), this.aliases, this.back,
        iconButton("close", t("close"), () => this.dialog.close())),
      el("div", { class: "drawer-body", tabIndex: -1 },
        this.serving, this.fault, this.load_, this.result, this.words, this.table,
        el("p", { class: "versions-help", text: t("versions.help") })));
    // A press on what is beside the panel closes it.
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
  }

  /** Draws what the status says; reads the lists again when something has come to its end. */
  follow(status) {
    const alias = status?.aliases?.[this.alias];
    const serving = this.alias === "current" ? status?.serving : null;
    const now = JSON.stringify([serving?.version, serving?.digest, serving?.since, alias?.target, alias?.unloaded, alias?.attempt?.version, alias?.attempt?.state, alias?.attempt?.started]);
    if (now !== this.seen && this.seen) {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.load(), PAUSE_MS);
    }
    this.seen = now;
    this.draw();
  }

  async load() {
    try {
      const [{ versions, problem }, { attempts }] = await Promise.all([
        this.ctx.api.call("GET", "/versions"), this.ctx.api.call("GET", "/attempts"),
      ]);
      Object.assign(this, { versions, problem, attempts, error: null });
    } catch (error) {
      this.error = error;
    }
    this.draw();
  }

  draw() {
    const status = this.ctx.store.get("status");
    const alias = status?.aliases?.[this.alias];
    this.drawAliases(Object.keys(status?.aliases ?? {}));
    this.drawServing(status, alias);
    const words = this.error ? t("versions.failed", { reason: this.error.message })
      : this.problem ?? (this.versions === null ? t("versions.reading") : this.versions.length ? "" : t("versions.none"));
    setText(this.words, words);
    show(this.words, words !== "");
    this.words.classList.toggle("error", Boolean(this.error || this.problem));
    this.drawRows(status, alias);
    this.back.disabled = this.busy !== null;
  }

  drawServing(status, alias) {
    const name = alias?.serving ?? (this.alias === "current" ? status?.serving?.version : null);
    const since = this.alias === "current" ? status?.serving?.since : null;
    let text = t("versions.nothing");
    if (name) text = since ? t("versions.serving", { version: name, time: time(since) }) : t("versions.servingOnly", { version: name });
    if (alias?.unloaded) text = t("versions.unloaded");
    setText(this.serving, text);
    setText(this.fault, alias?.fault?.message ?? "");
    show(this.fault, Boolean(alias?.fault));
    show(this.load_, Boolean(alias?.unloaded));
  }

  drawAliases(names) {
    show(this.aliases, names.length > 1);
    if (names.join() !== this.aliases.dataset.names) {
      this.aliases.dataset.names = names.join();
      this.aliases.replaceChildren(...names.map((name) => el("option", { value: name, text: name })));
      this.aliases.value = this.alias;
    }
  }

  choose() {
    this.alias = this.aliases.value;
    this.seen = "";
    this.follow(this.ctx.store.get("status"));
  }

  drawRows(status, alias) {
    const versions = this.versions ?? [];
    const names = new Set(versions.map((one) => one.name));
    for (const [name, row] of this.rows) {
      if (!names.has(name)) {
        row.element.remove();
        this.rows.delete(name);
      }
    }
    for (const version of versions) {
      if (!this.rows.has(version.name)) this.rows.set(version.name, makeRow(version.name, (name) => this.deploy(name)));
      const row = this.rows.get(version.name);
      drawRow(row, {
        version, alias: this.alias, target: alias?.target, busy: this.busy,
        serving: this.alias === "current" && status?.serving?.version === version.name ? status.serving : null,
        serves: alias?.serving === version.name || (this.alias === "current" && status?.serving?.version === version.name),
        attempt: this.attemptOf(version.name, alias),
      });
      this.table.append(row.element);
    }
  }

  // The attempt that runs is in the status before it is in the list.
  attemptOf(name, alias) {
    if (alias?.attempt?.version === name) return alias.attempt;
    return this.attempts.find((one) => one.version === name && one.alias === this.alias) ?? null;
  }

  async deploy(name) {
    const question = t("versions.deployQuestion", { version: name, alias: this.alias });
    if (await this.ctx.confirm(question, t("versions.deploy"))) {
      this.ask(name, t("versions.deploying", { version: name }), "/api/deploy", { version: name, alias: this.alias });
    }
  }

  async rollBack() {
    const serving = this.ctx.store.get("status")?.aliases?.[this.alias]?.serving;
    const before = this.attempts.find((one) => one.alias === this.alias && one.state === "PROMOTED" && one.version !== serving);
    const question = before ? t("versions.rollbackQuestion", { version: before.version }) : t("versions.rollbackAny");
    if (await this.ctx.confirm(question, t("versions.rollback"))) {
      this.ask(before?.version ?? "", t("versions.rollingBack"), "/api/rollback", { alias: this.alias });
    }
  }

  loadModel() {
    this.ask("", t("versions.loadingModel"), "/api/load_model", { alias: this.alias });
  }

  async ask(busy, text, path, body) {
    this.busy = busy;
    this.say(text);
    this.draw();
    try {
      const { version, message } = await this.ctx.api.call("POST", path, body);
      this.say(version ? t("versions.done", { version, time: dateTime(new Date()) }) : message);
    } catch (error) {
      const { serving } = this.ctx.store.get("status")?.aliases?.[this.alias] ?? {};
      // The reason is in the version's row: here it says what matters most.
      const isRejected = error.body?.reason?.version && serving;
      this.say(isRejected ? t("versions.rejected", { version: error.body.reason.version, serving }) : t("versions.refused", { reason: error.message }), true);
    }
    this.busy = null;
    await this.load();
  }

  say(text, isError = false) {
    setText(this.result, text);
    this.result.classList.toggle("error", isError);
    show(this.result, true);
  }
}

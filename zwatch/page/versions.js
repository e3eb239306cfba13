// The panel of versions: what serves, what the last attempts came to; Deploy and Roll back

import { open } from "./dialogs.js";
import { byId, el, setText, show } from "./dom.js";
import { t, time } from "./i18n.js";
import { textButton, view } from "./parts.js";
import { drawRow, makeRow } from "./versionrow.js";

const ALIAS = "current";
const PAUSE_MS = 250; // several events tell of one change

// Makes the button "Versions" open the panel; adds the action `versions()`
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
		Object.assign(this, { ctx, versions: null, attempts: [], problem: null, busy: false, seen: "", timer: 0 });
		this.rows = new Map();
		this.build();
	}

	// What the link asks for and what serves, with `since` and `images`
	get state() {
		const { aliases, serving } = this.ctx.store.get("status") ?? {};
		return { ...aliases?.[ALIAS], serving: serving?.version, since: serving?.since, images: serving?.images };
	}

	start() {
		open(this.dialog).then(() => {
			clearTimeout(this.timer);
			unfollow();
		});
		const unfollow = this.ctx.store.on("status", () => this.follow());
		this.read();
	}

	build() {
		this.serving = el("p", { class: "versions-serving" });
		this.problemText = el("p", { class: "error" });
		this.loadButton = textButton(t("versions.load"), () => this.ask("/api/load_model", {}), { class: "primary" });
		this.back = textButton(t("versions.rollback"), () => this.rollBack());
		this.result = el("p", { class: "versions-result", "aria-live": "polite" });
		this.table = el("div", { role: "table", class: "versions-list", "aria-label": t("versions") });
		this.dialog = view("drawer versions", t("versions"), [el("span", { class: "space" }), this.back],
			el("div", { class: "drawer-body", tabIndex: 0, role: "group", "aria-label": t("versions") },
				this.serving, this.problemText, this.loadButton, this.result, this.table, el("p", { class: "count", text: t("versions.help") })));
		// A press on what is beside the panel closes it
		this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
	}

	// Draws what the status says; reads the lists again when a deploy has begun or ended
	follow() {
		const { serving, since, target, unloaded, attempt } = this.state;
		const now = JSON.stringify([serving, since, target, unloaded, attempt?.version, attempt?.state, attempt?.started]);
		if (this.seen && now !== this.seen) {
			clearTimeout(this.timer);
			this.timer = setTimeout(() => this.read(), PAUSE_MS);
		}
		this.seen = now;
		this.draw();
	}

	async read() {
		const { api } = this.ctx;
		try {
			const [{ versions, problem }, { attempts }] = await Promise.all([api.call("GET", "/versions"), api.call("GET", "/attempts")]);
			Object.assign(this, { versions, problem, attempts });
		} catch (error) {
			this.problem = error.message;
		}
		this.draw();
	}

	draw() {
		const { serving, since, unloaded, fault } = this.state;
		const text = serving ? t("versions.serving", { version: serving, time: time(since) }) : t("versions.nothing");
		setText(this.serving, unloaded ? t("versions.unloaded") : text);
		setText(this.problemText, fault?.message ?? this.problem ?? "");
		show(this.loadButton, Boolean(unloaded));
		this.back.disabled = this.loadButton.disabled = this.busy;
		this.drawRows();
	}

	drawRows() {
		const versions = this.versions ?? [];
		for (const [name, row] of this.rows) {
			if (versions.some((one) => one.name === name)) continue;
			row.element.remove();
			this.rows.delete(name);
		}
		versions.forEach((version, index) => {
			const { name } = version;
			if (!this.rows.has(name)) this.rows.set(name, makeRow(name, () => this.deploy(name)));
			const row = this.rows.get(name);
			drawRow(row, { version, alias: ALIAS, state: this.state, attempt: this.attemptOf(name), busy: this.busy });
			// Only where it is not there already: to move an element takes the focus from what is in it
			if (this.table.children[index] !== row.element) this.table.insertBefore(row.element, this.table.children[index] ?? null);
		});
	}

	// The attempt that runs is in the status before it is in the list
	attemptOf(name) {
		const { attempt } = this.state;
		if (attempt?.version === name) return attempt;
		return this.attempts.find((one) => one.version === name && one.alias === ALIAS) ?? null;
	}

	async deploy(version) {
		const question = t("versions.deployQuestion", { version });
		if (await this.ctx.confirm(question, t("versions.deploy"))) {
			this.ask("/api/deploy", { version });
		}
	}

	async rollBack() {
		const { serving } = this.state;
		const before = this.attempts.find((one) => one.alias === ALIAS && one.state === "PROMOTED" && one.version !== serving);
		const question = t("versions.rollbackQuestion", { version: before ? ` (${before.version})` : "" });
		if (await this.ctx.confirm(question, t("versions.rollback"))) this.ask("/api/rollback", {});
	}

	async ask(path, body) {
		this.busy = true;
		this.say(t("versions.working"));
		this.draw();
		try {
			const { version } = await this.ctx.api.call("POST", path, { ...body, alias: ALIAS });
			this.say(t("versions.done", { version }));
		} catch (error) {
			const { version } = error.body?.reason ?? {};
			const { serving } = this.state;
			// The reason is in the version's row: here it says what matters most
			this.say(version && serving ? t("versions.rejected", { version, serving }) : t("notDone", { reason: error.message }), true);
		}
		this.busy = false;
		await this.read();
	}

	say(text, isError = false) {
		setText(this.result, text);
		this.result.classList.toggle("error", isError);
	}
}

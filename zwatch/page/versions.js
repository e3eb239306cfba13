// The panel of versions

import { open } from "./dialogs.js";
import { byId, el, setText, show } from "./dom.js";
import { reasoned, sentence, t, time } from "./i18n.js";
import { textButton, view } from "./parts.js";
import { drawRow, makeRow } from "./versionrow.js";

const PERIOD_MS = 2000; // no event tells of a directory that is made, sealed or removed

// Makes the button "Versions" open the panel
export function initVersions(ctx) {
	byId("versions-button").addEventListener("click", () => new Panel(ctx).start());
}

class Panel {
	constructor(ctx) {
		Object.assign(this, { ctx, alias: "current", versions: [], attempts: [], asked: 0, rows: new Map() });
		this.build();
		import("./trial.js").then(({ Trial }) => (this.trial = new Trial(this)), () => {});
	}

	get aliases() {
		return this.ctx.store.get("status")?.aliases ?? {};
	}

	// What the link asks for and what serves, with `since` and `images`
	get state() {
		const serving = this.ctx.store.get("status")?.serving;
		const state = this.aliases[this.alias] ?? {};
		if (serving?.version === state.serving) return { ...serving, ...state };
		const last = this.promoted((version) => version === state.serving);
		return { ...state, since: last && Date.parse(last.started) + 1000 * last.seconds };
	}

	// The last attempt of this link that brought such a version into service
	promoted(isWanted) {
		return this.attempts.find((one) => one.alias === this.alias && one.state === "PROMOTED" && isWanted(one.version));
	}

	start() {
		const unfollow = this.ctx.store.on("status", () => this.draw());
		open(this.dialog).then(() => {
			clearTimeout(this.timer);
			unfollow();
		});
		this.read().then(() => this.rows.get(this.state.serving)?.element.scrollIntoView({ block: "nearest" }));
	}

	build() {
		const label = { "aria-label": t("versions") };
		this.links = el("select", { "aria-label": t("versions.link"), on: { change: () => {
			this.alias = this.links.value;
			this.say("");
			this.draw();
		} } });
		this.serving = el("strong");
		this.problemText = el("p", { class: "error" });
		this.loadButton = textButton(t("versions.load"), () => this.ask("/api/load_model"), { class: "primary" });
		this.result = el("p", { class: "versions-result", "aria-live": "polite" });
		this.table = el("div", { role: "table", class: "versions-list", ...label });
		this.dialog = view("drawer versions", t("versions"), [this.links, el("span", { class: "space" }), textButton(t("versions.rollback"), () => this.rollBack())],
			el("div", { class: "drawer-body", tabIndex: 0, autofocus: true, role: "group", ...label },
				this.serving, this.problemText, this.loadButton, this.result, this.table, el("p", { class: "count", text: t("versions.help") })));
		// A press on what is beside the panel closes it
		this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.dialog.close());
	}

	readIn(pause) {
		clearTimeout(this.timer);
		this.timer = setTimeout(() => (document.hidden || this.ctx.store.get("connection") !== "open" ? this.readIn(PERIOD_MS) : this.read()), pause);
	}

	async read() {
		try {
			Object.assign(this, ...(await Promise.all(["/versions", "/attempts"].map((path) => this.ctx.api.call("GET", path)))));
			this.versions.sort((one, other) => one.name.localeCompare(other.name, undefined, { numeric: true }));
		} catch (error) {
			this.problem = sentence(error);
		}
		if (!this.dialog.open) return;
		this.draw();
		this.readIn(PERIOD_MS);
	}

	draw() {
		const { serving, since, unloaded, fault } = this.state;
		const text = serving ? t("versions.serving", { version: serving, time: since ? time(since) : "–" }) : t("versions.nothing");
		setText(this.serving, unloaded ? t("versions.unloaded") : text);
		setText(this.problemText, fault ? reasoned(fault.code, fault.message) : (this.problem ?? ""));
		show(this.loadButton, Boolean(unloaded));
		const names = Object.keys(this.aliases);
		show(this.links, names.length > 1);
		if (this.links.length !== names.length) this.links.replaceChildren(...names.map((text) => el("option", { text })));
		this.drawRows();
	}

	drawRows() {
		const { state, alias, rows, table } = this;
		const known = new Set(this.versions.map(({ name }) => name));
		for (const [name, { element }] of rows) {
			if (known.has(name)) continue;
			element.remove();
			rows.delete(name);
		}
		this.versions.forEach((version, index) => {
			const { name } = version;
			if (!rows.has(name)) rows.set(name, makeRow(name, () => this.deploy(name)));
			const row = rows.get(name);
			// The attempt that runs is in the status before it is in the list
			const attempt = state.attempt?.version === name ? state.attempt : this.attempts.find((one) => one.version === name && one.alias === alias);
			const links = Object.keys(this.aliases).filter((link) => this.aliases[link].target === name);
			drawRow(row, { version, alias, links, state, attempt });
			// To move an element takes the focus from what is in it
			if (table.children[index] !== row.element) table.insertBefore(row.element, table.children[index] ?? null);
		});
		this.trial?.draw();
	}

	// Asks a question first; it names the link, if that is not the usual one
	async askAfter(question, parts, button, ...call) {
		const to = this.alias === "current" ? "" : t("versions.to", this);
		if (await this.ctx.confirm(t(question, { ...parts, to }), t(button))) this.ask(...call);
	}

	deploy(version) {
		this.askAfter("versions.deployQuestion", { version }, "versions.deploy", "/api/deploy", { version });
	}

	rollBack() {
		const { serving } = this.state;
		const before = this.promoted((version) => version !== serving);
		this.askAfter("versions.rollbackQuestion", { version: before ? ` (${before.version})` : "" }, "versions.rollback", "/api/rollback");
	}

	async ask(path, body) {
		const turn = ++this.asked;
		const { alias } = this;
		this.say(t("versions.working"));
		let said;
		try {
			const { version } = await this.ctx.api.call("POST", path, { ...body, alias });
			said = [t("versions.done", { version })];
		} catch (error) {
			const { version } = error.body?.reason ?? {};
			const { serving } = this.aliases[alias] ?? {};
			// The reason is in the version's row: here it says what matters most
			said = [version && serving ? t("versions.rejected", { version, serving }) : t("notDone", { reason: sentence(error) }), true];
		}
		// The outcome of the newest wish is said
		if (turn === this.asked && alias === this.alias) this.say(...said);
		this.readIn(0);
	}

	say(text, isError = false) {
		setText(this.result, text);
		this.result.classList.toggle("error", isError);
	}
}

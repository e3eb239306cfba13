// The trial in the panel of versions: another version draws a part of a link's requests

import { open } from "./dialogs.js";
import { el, setText, show } from "./dom.js";
import { number, percent, reasoned, sentence, t } from "./i18n.js";
import { decimals, extend, sheet, textButton } from "./parts.js";
import { makeReplicas } from "./replicas.js";

extend(`
trial = Trial = 试用
.try = Try… = 试用…
.question = Try {version} on a part of the requests{to}. Each client stays on its side; 0 only holds the version ready. = 用 {version} 处理一部分请求{to}。每个客户端固定在一侧；0 只让版本保持就绪。
.replaces = It takes the place of {version}. = 它将取代 {version}。
.start = Start = 开始
.part = Percent of the requests = 请求百分比
.change = Change = 更改
.promote = Promote = 转正
.end = End the trial = 结束试用
.gets = {version} draws {percent} of the requests for {alias}. = {version} 处理 {alias} 的 {percent} 请求。
.still = {version} still draws {percent}. = {version} 仍处理 {percent}。
.held = {version} is ready and draws no requests for {alias}. = {version} 已就绪，不处理 {alias} 的请求。
.loading = {version} is loaded and verified: {percent} = 正在加载和校验 {version}：{percent}
.warming = {version} draws a first picture to warm up. = {version} 正在生成第一张图片以预热。
.waiting = {version} is not ready yet. = {version} 尚未就绪。
.rejected = {version} is rejected: {reason} = {version} 被拒绝：{reason}
.missed = {version} missed {missed} of {checked} golden images. = {version} 的 {checked} 张基准图片中有 {missed} 张不符。
.promoteQuestion = Promote {version}{to}? It draws all requests; nothing is loaded again. = 让 {version} 转正{to}？它将处理全部请求，无需重新加载。
.started = The trial of {version} has begun. = {version} 的试用已开始。
.changed = {version}: {percent} of the requests. = {version}：{percent} 的请求。
.promoted = {version} serves all requests now. = {version} 已处理全部请求。
.ended = The trial has ended. = 试用已结束。
.sides = Both sides of the trial = 试用双方
.requests = Requests = 请求
.failures = Failures = 失败
.latency = Seconds a request = 每个请求的秒数
.votes = Liked, of the votes = 好评（占投票）
.between = {value} ({low} – {high}) = {value}（{low} – {high}）
.of = {value} of {count} = {count} 中的 {value}
.interval = In brackets: where the true value lies with 95 % confidence. = 括号内：真实值的 95% 置信区间。
`, `
.trial{display:grid;gap:.5rem;padding:.75rem;border:var(--border);border-radius:12px}
.trial h3{margin:0;font-size:.8125rem}
.trial-controls{display:flex;flex-wrap:wrap;justify-content:space-between;gap:.5rem}
.trial :is(div,label){display:flex;align-items:center;gap:.5rem;margin:0}
.trial input{width:5rem;color:var(--text)}
.trial-sides{border-collapse:collapse;width:100%;font-size:.8125rem}
.trial-sides :is(td,th){padding:.25rem .5rem .25rem 0;border-top:var(--border);text-align:left;vertical-align:top;font-weight:400}
.trial-sides thead :is(td,th){border:0}
.trial-sides :is(strong,small){display:block}
.version-buttons{display:flex;gap:.5rem}
`);

const PERIOD_MS = 1500;

export class Trial {
	constructor(panel) {
		Object.assign(this, { panel, ctx: panel.ctx, readAt: -Infinity, sides: null });
		this.title = el("h3", { text: t("trial"), id: "trial-title" });
		this.text = el("p");
		this.problem = el("p", { class: "error" });
		this.part = partInput();
		this.promoteButton = textButton(t("trial.promote"), () => this.promote(), { class: "primary" });
		this.form = el("form", { class: "trial-controls" },
			el("div", {}, el("label", {}, el("span", { text: t("trial.part") }), this.part), el("button", { text: t("trial.change") })),
			el("div", {}, this.promoteButton, textButton(t("trial.end"), () => this.send("/api/share", { percent: null }, "trial.ended"))));
		this.form.addEventListener("submit", (event) => {
			event.preventDefault();
			this.send("/api/share", { percent: Number(this.part.value) }, "trial.changed");
		});
		this.table = el("table", { class: "trial-sides", "aria-label": t("trial.sides") });
		this.conclusion = el("p");
		this.note = el("p", { class: "count", text: t("trial.interval") });
		this.element = el("section", { class: "trial", "aria-labelledby": "trial-title", hidden: true },
			this.title, this.text, this.problem, this.form, this.table, this.note, this.conclusion);
		panel.table.before(this.element);
		this.drawReplicas = makeReplicas(panel);
		this.draw();
	}

	// The share of the chosen link, before names that do not count; undefined without a trial
	get share() {
		const shares = Object.entries(this.ctx.store.get("status")?.shares ?? {}).map(([name, one]) => ({ name, ...one }));
		const own = shares.filter(({ alias }) => alias === this.panel.alias);
		return own.find(({ counts }) => counts) ?? own[0];
	}

	get to() {
		return this.panel.alias === "current" ? "" : t("versions.to", this.panel);
	}

	// Called whenever the panel is drawn
	draw() {
		const { share, panel } = this;
		this.drawReplicas();
		show(this.element, Boolean(share));
		if (share) this.drawShare(share);
		for (const [name, row] of panel.rows) this.drawButton(name, row, share);
		if (share && performance.now() - this.readAt > PERIOD_MS) this.read();
	}

	// The golden images of what a share serves
	goldenOf({ serving }) {
		return this.engines?.find(({ version, golden }) => version === serving && golden)?.golden;
	}

	drawShare(share) {
		const { text, problem, isReady } = stateOf(share, this.panel.alias, this.goldenOf(share));
		setText(this.title, `${t("trial")}: ${share.name} → ${share.target ?? share.link ?? "?"}`);
		setText(this.text, text);
		setText(this.problem, problem);
		this.promoteButton.disabled = !isReady;
		if (this.shown !== share.name) this.part.value = share.percent ?? "";
		this.shown = share.name;
		// Not those of the last trial; but those for which a version was withdrawn
		const isOfShare = this.sides?.share === share.name && (!this.sides.ended || this.sides.sides[1].version === share.target);
		const { sides, conclusion } = isOfShare ? this.sides : { sides: [], conclusion: "" };
		setText(this.conclusion, conclusion);
		for (const one of [this.table, this.note]) show(one, sides.length > 0);
		const figures = JSON.stringify(sides);
		if (figures === this.figures) return; // what is selected in it stays so
		this.figures = figures;
		this.table.replaceChildren(...(sides.length ? tableOf(sides, this.panel.alias) : []));
	}

	// The button beside "Deploy" of a version's row, and the share's name in it
	drawButton(name, row, share) {
		if (!row.tryButton) {
			row.tryButton = textButton(t("trial.try"), () => this.ask(name));
			row.tryChip = el("span", { class: "chip" });
			row.parts.deploy.parentNode.classList.add("version-buttons");
			row.parts.deploy.before(row.tryButton);
			row.parts.chips.after(row.tryChip);
		}
		const isTried = share?.target === name;
		show(row.tryChip, isTried);
		setText(row.tryChip, isTried ? `${share.name} → ${name}` : "");
		row.tryButton.disabled = this.panel.state.serving === name || isTried;
	}

	// No event tells of what both sides have drawn
	async read() {
		this.readAt = performance.now();
		try {
			const { call } = this.ctx.api;
			this.sides = await call("GET", `/api/trial?alias=${encodeURIComponent(this.panel.alias)}`);
			this.engines = (await call("GET", "/status")).engines;
		} catch {
			return; // the panel says what is wrong
		}
		if (this.panel.dialog.open) this.draw();
	}

	// Asks for the percentage of a version's trial
	async ask(version) {
		const part = partInput(10);
		const { share, to } = this;
		const texts = [t("trial.question", { version, to }), share && t("trial.replaces", { version: share.target })].filter(Boolean);
		const form = el("form", { method: "dialog" }, el("p", { text: texts.join(" ") }),
			el("label", {}, el("span", { text: t("trial.part") }), part),
			el("div", { class: "dialog-buttons" }, textButton(t("cancel"), () => form.closest("dialog").close(""), { class: "quiet" }),
				el("button", { value: "ok", class: "primary", text: t("trial.start") })));
		const answer = await open(el("dialog", { class: "question", "aria-label": t("trial") }, form));
		if (answer === "ok") this.send("/api/share", { version, percent: Number(part.value) }, "trial.started");
	}

	async promote() {
		const question = t("trial.promoteQuestion", { version: this.share.target, to: this.to });
		if (await this.ctx.confirm(question, t("trial.promote"))) this.send("/api/promote", {}, "trial.promoted");
	}

	async send(path, body, done) {
		const { panel } = this;
		const { alias } = panel;
		const turn = ++panel.asked;
		panel.say(t("versions.working"));
		let said;
		try {
			const found = await this.ctx.api.call("POST", path, { ...body, alias });
			said = [t(done, { version: found.version, percent: percent((found.percent ?? 0) / 100) })];
		} catch (error) {
			said = [t("notDone", { reason: sentence(error) }), true];
		}
		if (turn === panel.asked && alias === panel.alias) panel.say(...said);
		this.readAt = -Infinity;
		panel.readIn(0);
	}
}

const partInput = (value = "") => el("input", { type: "number", min: 0, max: 100, step: 1, required: true, value: String(value), inputMode: "numeric" });

// What a share's state is: a sentence, what is wrong, and whether it can be promoted
function stateOf({ target: version, percent: part, fault, attempt, serving, counts }, alias, golden) {
	// What serves keeps serving until what the link leads to is ready
	const still = serving && serving !== version && counts && part ? t("trial.still", { version: serving, percent: percent(part / 100) }) : "";
	if (fault) return { text: still, problem: reasoned(fault.code, fault.message) };
	if (attempt?.code && attempt.version === version && attempt.state !== "PROMOTED") {
		return { text: still, problem: t("trial.rejected", { version, reason: reasoned(attempt.code, attempt.reason) }) };
	}
	const isReady = serving === version;
	const key = isReady ? (part ? "gets" : "held") : ({ LOADING: "loading", WARMING: "warming" }[attempt?.state] ?? "waiting");
	const shown = percent(isReady ? part / 100 : (attempt?.progress ?? 0));
	const hasMissed = isReady && golden?.missed > 0;
	const problem = hasMissed ? t("trial.missed", { version, ...golden }) : "";
	return { text: `${t(`trial.${key}`, { version, alias, percent: shown })} ${still}`.trim(), problem, isReady: isReady && !hasMissed };
}

function tableOf(sides, alias) {
	const row = (key, of) => [[t(`trial.${key}`)], ...sides.map((side) => [of(side)])];
	return sheet([null, ...sides.map(({ version, share }) => [version, share || alias])], [
		row("requests", ({ requests }) => number(requests)),
		row("failures", ({ failures }) => number(failures)),
		row("latency", ({ latency }) => between(latency, latency?.median, decimals)),
		row("votes", ({ votes }) => votes?.up + votes?.down > 0 ? `${t("trial.of", { value: number(votes.up), count: number(votes.up + votes.down) })}: ${between(votes, votes.share, percent)}` : "–")]);
}

// A value with its interval; "–" where nothing was measured
function between(found, value, format) {
	if ((value ?? null) === null) return "–";
	return found.low === null ? format(value) : t("trial.between", { value: format(value), low: format(found.low), high: format(found.high) });
}

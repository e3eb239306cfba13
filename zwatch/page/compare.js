// The comparison of two pictures

import { draw, findInHistory, findOther } from "./counterpart.js";
import { open } from "./dialogs.js";
import { el, setText } from "./dom.js";
import { percent, sentence, t } from "./i18n.js";
import { createPanes } from "./panes.js";
import { textButton, view } from "./parts.js";
import { describe, rowOfJob, seedText } from "./picture.js";
import { createStrip } from "./virtual.js";
import { createVotes } from "./votes.js";

const SIDES = ["left", "right"];
const STEP = 40; // pixels that an arrow moves the pictures

// Compares a picture with another; without `other` with the picture on the other version
export function compare(ctx, row, other) {
	if (document.querySelector("dialog.compare")) return;
	const view = new Comparison(ctx, row, other ?? null);
	if (!other) view.showOther();
}

// Draws a request by two models and compares what they make
export async function compareModels(ctx, request, models) {
	const accepted = await ctx.actions.post({ ...request, n: 1, model: models });
	new Comparison(ctx, null, null).followJobs(accepted.jobs, models);
}

class Comparison {
	constructor(ctx, left, right) {
		this.ctx = ctx;
		this.rows = { left, right };
		this.stop = null; // stops following a job that draws a picture
		this.turn = 0; // an answer about pictures that are no longer compared is dropped
		this.build();
		open(this.dialog).then(() => {
			this.leave();
			this.unfollow();
		});
		this.panes.range.focus();
		this.drawAll();
	}

	build() {
		const { store, rows } = this.ctx;
		const zoom = el("span", { class: "zoom-level" });
		this.panes = createPanes((scale) => setText(zoom, percent(scale)));
		this.note = el("p", { class: "compare-note", "aria-live": "polite" });
		this.modes = ["over", "beside"].map((mode) =>
			textButton(t(`compare.${mode}`), () => this.setMode(mode), { data: { mode } }));
		const zoomButton = (text, label, factor) =>
			textButton(text, () => this.panes.zoomBy(factor), { class: "icon-button", label: t(label) });
		this.captions = Object.fromEntries(SIDES.map((side) => [side, el("p", { class: `pane-caption ${side}` })]));
		this.votes = Object.fromEntries(SIDES.map((side) => [side, createVotes(this.ctx)]));
		const foot = (side) => el("div", { class: `pane-foot ${side}` }, this.votes[side].element, this.captions[side]);
		const isShown = (row) => row.name === this.rows.right?.name;
		this.strip = createStrip(rows, t("compare.list"), { isShown, pick: (row) => this.set(row) });
		const head = [
			el("div", { class: "segments", role: "group" }, this.modes),
			zoomButton("−", "compare.smaller", 1 / 1.5), zoom, zoomButton("+", "compare.larger", 1.5),
			textButton(t("compare.fit"), () => this.panes.fit(), { class: "quiet" }),
			textButton("100 %", () => this.panes.actual(), { class: "quiet" }),
			el("span", { class: "space" }),
		];
		this.dialog = view("full compare", t("compare"), head, this.panes.element,
			el("div", { class: "compare-foot" }, foot("left"), this.note, foot("right")), this.strip.scroller);
		this.unfollow = store.on("rows", () => this.strip.refresh());
		this.dialog.addEventListener("keydown", (event) => this.key(event));
		this.setMode("over");
	}

	key(event) {
		if (event.ctrlKey || event.metaKey || event.altKey) return;
		const { panes } = this;
		const keys = { "+": () => panes.zoomBy(1.5), "-": () => panes.zoomBy(1 / 1.5), 0: panes.fit, 1: panes.actual };
		const moves = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] };
		const use = event.shiftKey && event.key in moves ? () => panes.move(...moves[event.key]) : keys[event.key];
		if (!use) return;
		event.preventDefault();
		use();
	}

	setMode(mode) {
		for (const button of this.modes) button.ariaPressed = button.dataset.mode === mode;
		this.panes.setMode(mode);
	}

	set(row) {
		this.leave();
		this.rows.right = row;
		this.drawAll();
	}

	leave() {
		this.stop?.();
		this.stop = null;
		return ++this.turn;
	}

	// Shows the same prompt and seed on the other version: from the history, or as it is drawn
	async showOther() {
		const turn = this.leave();
		const row = this.rows.left;
		try {
			const other = await findOther(this.ctx, row);
			const found = await findInHistory(this.ctx, row, other);
			if (turn !== this.turn) return;
			if (found) this.pair(row, found);
			else if (other) await this.drawOn(other, turn);
			else this.withoutOther(row);
		} catch (error) {
			if (turn === this.turn) this.giveUp(sentence(error));
		}
	}

	// Shows what jobs make, a side each
	followJobs(ids, models) {
		const last = {};
		const show = (side, place, jobs) => {
			const job = jobs.find((one) => one.id === ids[place]);
			if (job === last[side] && job) return;
			last[side] = job;
			const image = job?.images?.at(-1);
			if (job?.state === "done" && image) {
				this.rows[side] = rowOfJob(job, image);
				this.drawAll([side]);
				this.ctx.announce(describe(this.rows[side], t));
			} else if (job?.state === "failed" || job?.state === "cancelled") {
				this.fail(job.error ? sentence(job.error) : t("job.cancelled"), side);
			} else this.wait({ version: models[place] }, job ? this.ctx.actions.progressText(job) : "", job, side);
		};
		this.stop = this.ctx.store.on("jobs", (jobs) => SIDES.forEach((side, place) => show(side, place, jobs)));
	}

	async drawOn(other, turn) {
		const row = this.rows.left;
		this.rows.right = null;
		this.drawAll();
		this.wait(other, "");
		const stop = await draw(this.ctx, row, other, (job, made) => {
			if (turn !== this.turn) return;
			if (made) {
				this.pair(row, made);
				this.ctx.announce(describe(made, t));
			} else if (job.state === "failed" || job.state === "cancelled") this.giveUp(job.error ? sentence(job.error) : t("job.cancelled"));
			else this.wait(other, this.ctx.actions.progressText(job), job);
		});
		if (turn === this.turn) this.stop = stop;
		else stop();
	}

	wait({ version }, text, job = { step: 0, steps: 1 }, side = "right") {
		const bar = el("progress", { max: job.steps, value: job.step, "aria-label": t("progress") });
		this.panes.set(side, { url: job.preview ?? null, text: version, content: [el("p", { text }), bar] });
	}

	// The older name on the left: "v1 | v2"
	pair(row, other) {
		this.leave();
		const isFirst = (row.version ?? "").localeCompare(other.version ?? "", undefined, { numeric: true }) <= 0;
		this.rows = isFirst ? { left: row, right: other } : { left: other, right: row };
		this.drawAll();
	}

	withoutOther(row) {
		const { rows } = this.ctx;
		const index = rows.indexOf(row.name);
		this.rows.right = rows.row(index + 1) ?? rows.row(index - 1) ?? null;
		this.drawAll();
		setText(this.note, t("compare.noOther"));
	}

	giveUp(reason) {
		this.leave();
		this.fail(reason);
	}

	fail(reason, side = "right") {
		this.panes.set(side, { content: [el("p", { class: "error", role: "alert", text: t("compare.failed", { reason }) })] });
	}

	drawAll(sides = SIDES) {
		setText(this.note, "");
		for (const side of sides) {
			const row = this.rows[side];
			this.panes.set(side, row ? { url: row.url, alt: describe(row, t), text: row.version ?? "" } : {});
			this.votes[side].draw(row);
			setText(this.captions[side], row ? `${t("caption.seed", { seed: seedText(row) })} · ${row.width ?? "–"} × ${row.height ?? "–"} · ${row.prompt ?? ""}` : "");
		}
		this.strip.refresh();
	}
}

// The detail view of a picture

import { toJson } from "./api.js";
import { open } from "./dialogs.js";
import { el, setText } from "./dom.js";
import { bytes, dateTime, number, t } from "./i18n.js";
import { closeViews, textButton, view } from "./parts.js";
import { curlText, describe, seedText } from "./picture.js";
import { copyAndSay } from "./toast.js";
import { createVotes } from "./votes.js";

export function openDetail({ ctx, hidden, deleting }, list, row) {
	if (document.querySelector("dialog.detail")) return;
	const parts = build();
	const { dialog } = parts;

	async function go(index) {
		await list.need(index, index + 1);
		const next = list.row(index);
		if (!next || !dialog.isConnected) return;
		row = next;
		drawPicture(parts, row);
		setText(parts.place, t("detail.place", { n: number(index + 1), total: number(list.total) }));
		ctx.announce(describe(row, t));
	}

	const walk = async (by) => go((await list.find(row.name)) + by);

	async function remove() {
		const index = await list.find(row.name);
		if (hidden.has(row.name)) return;
		deleting.one(row);
		if (list.total) go(Math.min(index, list.total - 1));
		else dialog.close();
	}

	const copyPrompt = () => copyAndSay(row.prompt ?? "");
	const compare = () => {
		closeViews();
		ctx.actions.compare(row);
	};
	parts.votes = createVotes(ctx);
	parts.prompt.after(parts.votes.element);
	parts.actions.append(
		textButton(t("use.all"), () => ctx.actions.reuse(row, {}), { class: "primary" }),
		textButton(t("use.seed"), () => ctx.actions.reuse(row, { seedOnly: true })),
		textButton(t("use.picture"), () => ctx.actions.change(row)),
		textButton(t("compare"), compare),
		textButton(t("detail.copyPrompt"), copyPrompt),
		textButton(t("detail.copyCurl"), () => copyAndSay(curlText(row, location.origin, toJson))),
		parts.download,
		textButton(t("detail.delete"), remove, { class: "danger" }));
	parts.newer.addEventListener("click", () => walk(-1));
	parts.older.addEventListener("click", () => walk(1));
	const keys = {
		ArrowLeft: () => walk(-1), ArrowRight: () => walk(1), Home: () => go(0), End: () => go(list.total - 1), Delete: remove, c: copyPrompt, z: parts.zoom,
	};
	dialog.addEventListener("keydown", (event) => {
		if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in keys)) return;
		event.preventDefault();
		keys[event.key]();
	});
	open(dialog).then(() => hidden.has(row.name) || ctx.actions.show(row));
	drawPicture(parts, row);
	walk(0);
	parts.older.focus();
}

function build() {
	const image = el("img", { class: "detail-image" });
	const stage = el("div", { class: "detail-stage" }, image);
	const zoom = () => {
		stage.tabIndex = stage.classList.toggle("actual") ? 0 : -1;
		stage.focus();
	};
	image.addEventListener("click", zoom);
	const arrow = (text, key) => textButton(text, null, { class: "icon-button", label: t(key) });
	const [newer, older] = [arrow("‹", "detail.newer"), arrow("›", "detail.older")];
	const place = el("span", { class: "count" });
	const prompt = el("p", { class: "detail-prompt" });
	const facts = el("dl", { class: "facts" });
	const actions = el("div", { class: "detail-actions" });
	const download = el("a", { text: t("detail.download") });
	const dialog = view("full detail", t("detail"), [newer, place, older, el("span", { class: "space" })],
		el("div", { class: "detail-body" }, stage,
			el("div", { class: "detail-side" }, el("h3", { text: t("field.prompt") }), prompt, actions, facts)));
	return { dialog, zoom, stage, image, newer, older, place, prompt, facts, actions, download };
}

function drawPicture({ image, stage, prompt, facts, download, votes }, row) {
	stage.classList.remove("actual");
	stage.style.backgroundImage = `url("${row.url}/thumbnail")`; // until the whole picture is there
	image.onload = () => (stage.style.backgroundImage = "none");
	image.src = row.url;
	image.alt = row.prompt || t("history.noPrompt");
	download.href = row.url;
	download.download = row.name;
	setText(prompt, row.prompt || t("history.noPrompt"));
	votes.draw(row);
	facts.replaceChildren(...factsOf(row));
}

function factsOf(row) {
	const values = {
		"field.negative_prompt": row.negative_prompt,
		"detail.version": row.version,
		"detail.digest": row.digest,
		"field.seed": seedText(row),
		"size": row.width && `${row.width} × ${row.height}`,
		"field.steps": row.steps,
		"field.guidance_scale": row.guidance_scale,
		"field.format": row.format === "png" ? "png" : `${row.format} ${row.quality ?? ""}`,
		"detail.image": row.source,
		"detail.mask": row.mask && "✓",
		"field.strength": row.source && row.strength,
		"field.mask_blur": row.mask && row.mask_blur,
		"detail.loras": row.loras?.map(({ name, scale, digest }) => `${name} ${scale} (${digest.slice(0, 12)})`).join(", "),
		"detail.model": row.model,
		"detail.bytes": row.bytes && bytes(row.bytes),
		"detail.created": row.created && dateTime(row.created),
		"detail.file": row.name,
	};
	return Object.entries(values).filter(([, value]) => value || value === 0).flatMap(([key, value]) =>
		[el("dt", { text: t(key) }), el("dd", { class: ["detail.digest", "detail.image", "detail.loras"].includes(key) && "code", text: String(value) })]);
}

// The picture that is changed, in the form: its size, its mask, how much it is changed

import { el, iconButton, setText, show } from "./dom.js";
import { find, findSent, keep, keepSent } from "./drafts.js";
import { percent, t } from "./i18n.js";
import { coverage, drawMask, maskFile } from "./maskops.js";
import { extend, makeSlider, textButton } from "./parts.js";
import { NUMBERS, read as readKept, write } from "./settings.js";
import { toast } from "./toast.js";

extend(`
source = Picture to change = 要修改的图片
.remove = Remove the picture = 移除图片
.replace = Choose another picture = 更换图片
.drawn = drawn as = 生成为
.stretched = stretched to = 拉伸为
.ownSize = Size of the picture = 使用图片尺寸
.mask = Paint a mask… = 绘制蒙版…
.editMask = Edit the mask… = 编辑蒙版…
.whole = All of it is changed. = 修改整张图片。
.part = {percent} of it is painted anew. = 重绘其中 {percent}。
.broken = {name} is no picture that this browser can read. = 此浏览器无法读取图片 {name}。
.lost = The picture to change is not here any more. Choose it again. = 要修改的图片已不在，请重新选择。
strength.0 = Nothing changes. = 不作修改。
.1 = Colours and fine details change. = 只改变颜色和细节。
.2 = The composition stays; style and details change. = 保留构图，改变风格和细节。
.3 = At most the rough layout stays. = 至多保留大致布局。
.steps = 1 step is drawn.|{count} steps are drawn. = 生成 {count} 步。
`, `
.source-card{display:grid;grid-template-columns:auto minmax(0,1fr) auto;gap:.5rem;padding:.5rem;border:var(--border);border-radius:.75rem}
.source-card>:nth-child(n + 4){grid-column:1 / -1}
.source-card p{overflow-wrap:anywhere}
.source-thumb{position:relative;width:5rem;height:5rem;padding:0;overflow:hidden;background:var(--sunken)}
.source-thumb>*{position:absolute;inset:0;width:100%;height:100%;object-fit:contain}
.source-thumb>canvas{opacity:.6}
.source-corner{display:grid;align-content:start}
.source-buttons{display:flex;flex-wrap:wrap;gap:.25rem}
`);

const { least, most, step } = NUMBERS.width;
const MOST_MASK = 4096; // pixels of a side: what the server keeps of a picture
const MOST_BYTES = 30 * 1024 * 1024; // with a mask it is less than the server takes
const MOST_PIXELS = 2 ** 26;
const MADE = "zwatch.made";
const MOST_MADE = 400; // what was sent and is kept makes no more

// Makes the card in `host`; `choose` opens the choice of a file. The store's `source` is {image, file, name, url, width, height,
// ops (of the mask), covered, sides (drawn if none are asked for)}
export function makeCard({ store, api, announce }, host, choose) {
	let source = null;
	let loading = null; // the image that is loaded, and its end
	let kept; // the file that the browser keeps
	let made = readKept(MADE) ?? {}; // the jobs of pictures that were made from others, by their paths

	const image = el("img", { alt: "", draggable: false });
	const overlay = el("canvas");
	const thumb = el("button", { type: "button", class: "source-thumb", on: { click: edit } }, image, overlay);
	const [name, size, masked, meaning] = ["", "hint", "hint", "hint"].map((kind) => el("p", { class: kind }));
	const mask = textButton("", edit, { class: "small" });
	const ownSize = textButton(t("source.ownSize"), () => change({ width: null, height: null, side: null }), { class: "small" });
	const remove = iconButton("close", t("source.remove"), () => {
		change({ image: null });
		host.querySelector("button").focus();
	});
	const strength = makeSlider("field-strength", t("field.strength"), { ...NUMBERS.strength, step: 0.01 }, (value) => change({ strength: value }));
	const blur = makeSlider("field-mask_blur", t("field.mask_blur"), NUMBERS.mask_blur, (value) => change({ mask_blur: value }), (value) => `${value} px`);
	meaning.id = "strength-meaning";
	strength.input.setAttribute("aria-describedby", meaning.id);
	const card = el("div", { class: "source-card", role: "group", "aria-label": t("source"), hidden: true },
		thumb, el("div", {}, name, size, masked), el("div", { class: "source-corner" }, remove, iconButton("image", t("source.replace"), choose)),
		el("div", { class: "source-buttons" }, mask, ownSize), el("div", {}, strength.element, meaning), blur.element);
	host.append(card);

	const now = () => store.get("settings");
	const change = (changes) => store.set("settings", { ...now(), ...changes });

	function set(found) {
		if (source?.file && source.url !== found?.url) URL.revokeObjectURL(source.url);
		source = found && { ops: [], ...found, sides: sidesOf(found), covered: coverage(found) };
		store.set("source", source);
		// The mask apart: the file need not be written at each stroke
		if (source?.file !== kept) keep("file", source?.file && { file: source.file, name: source.name });
		kept = source?.file;
		keep("mask", source && { image: source.image, ops: source.ops });
		draw();
	}

	// A picture that is much larger than what the version draws is drawn smaller
	function sidesOf({ width, height }) {
		const own = store.get("status")?.serving?.default_size ?? 1024;
		const scale = Math.min(1, most / Math.max(width, height), (2 * own) / Math.sqrt(width * height));
		const rounded = (side) => Math.max(least, Math.round((side * scale) / step) * step);
		return { width: rounded(width), height: rounded(height) };
	}

	function draw() {
		show(card, Boolean(source));
		if (!source) return;
		const { strength: value, mask_blur: blurred, steps } = now();
		const [width, height] = [now().width ?? source.sides.width, now().height ?? source.sides.height];
		const isStretched = Math.abs(Math.log((width * source.sides.height) / (height * source.sides.width))) > 0.05;
		if (image.getAttribute("src") !== source.url) image.src = source.url;
		drawMask(overlay, source, 192);
		setText(name, source.name);
		const [own, drawn] = [`${source.width} × ${source.height}`, `${width} × ${height}`];
		setText(size, own === drawn ? own : `${own}, ${t(isStretched ? "source.stretched" : "source.drawn")} ${drawn}`);
		setText(masked, coveredText(source.covered));
		setText(mask, t(source.covered ? "source.editMask" : "source.mask"));
		thumb.ariaLabel = thumb.title = mask.textContent;
		show(ownSize, String([width, height]) !== String(Object.values(source.sides)));
		show(blur.element, source.covered > 0);
		strength.set(value);
		blur.set(blurred);
		const count = Number.isInteger(steps) ? steps - Math.trunc(steps - steps * value) : 0; // as diffusers counts
		setText(meaning, `${t(`strength.${Math.ceil(value * 3)}`)} ${count ? t("strength.steps", { count }) : ""}`);
	}

	async function edit() {
		const { paintMask } = await import("./mask.js");
		const { url } = source;
		await paintMask(announce, source, (ops) => source?.url === url && set({ ...source, ops }));
		mask.focus();
	}

	// Returns what the settings name, as this browser keeps it
	async function recall(of) {
		const [file, painted] = [await find("file"), await find("mask")];
		return { ...(await loadedAs(of, file)), ops: painted?.image === of ? painted.ops : [] };
	}

	// Returns the picture and the mask that a job, or that of a row, was sent with. Throws if this browser did not send it
	async function sent({ id, url }) {
		const found = await findSent(({ ids }) => ids?.includes(id ?? made[url]));
		if (!found) throw new Error(t("source.lost"));
		return { ...(await loadedAs(found.image, found)), ops: found.ops };
	}

	store.on("jobs", (jobs) => {
		const all = jobs.flatMap(({ id, request, images = [] }) => (request.source ? images.map(({ url }) => [url, id]) : []));
		const fresh = all.filter(([url]) => url && !made[url]);
		if (!fresh.length) return;
		made = Object.fromEntries([...Object.entries(made), ...fresh].slice(-MOST_MADE));
		write(MADE, made);
	});

	store.on("settings status", () => {
		if (source && String(Object.values(sidesOf(source))) !== String(Object.values(source.sides))) set(source);
		else draw();
	});

	return {
		// Takes a file, the row of a picture, or with {sent: row} what that was made from
		async take(found) {
			set(await (found instanceof Blob ? read(found) : found.sent ? sent(found.sent) : opened(`history:${found.name}`)));
			change({ image: source.image, ...(!found.sent && { width: null, height: null, side: null }) });
			announce(`${t("source")}: ${source.name}, ${size.textContent}`);
		},

		// Shows the picture that the settings name
		follow(of) {
			if (of === (source?.image ?? null)) return null;
			if (of === null) return set(null);
			if (loading?.of === of) return loading.end;
			const end = recall(of).then(
				(found) => now().image === of && set(found),
				(error) => {
					if (now().image === of) change({ image: null });
					toast(error.message, { error: true });
				}).finally(() => (loading = null));
			loading = { of, end };
			return end;
		},

		async post(request, of) {
			await loading?.end;
			const from = request.image ? source : await sent(of);
			if (!from) throw new Error(t("source.lost"));
			const form = new FormData();
			const { source: digest, mask: hasMask, ...fields } = { ...from.sides, ...request, image: from.file ?? from.image };
			for (const [key, value] of Object.entries(fields)) form.append(key, Array.isArray(value) ? JSON.stringify(value) : value);
			if (coverage(from)) form.append("mask", await maskFile(from, MOST_MASK));
			const job = await api.call("POST", "/jobs", form);
			keepSent({ ids: job.jobs ?? [job.id], image: from.image, file: from.file, name: from.name, ops: from.ops });
			return job;
		},
	};
}

export const coveredText = (covered) => (covered ? t("source.part", { percent: percent(Math.max(0.01, covered)) }) : t("source.whole"));

const loadedAs = (of, { file, name } = {}) => (of === "file" ? read(file, name) : opened(of));

// Reads a file. Throws if this browser cannot
async function read(file, text = file?.name) {
	if (!file) throw new Error(t("source.lost"));
	try {
		const bitmap = await (/svg/.test(file.type) ? decoded(URL.createObjectURL(file)) : createImageBitmap(file));
		const isTaken = /png|jpeg|webp|gif/.test(file.type) && file.size <= MOST_BYTES && bitmap.width * bitmap.height <= MOST_PIXELS;
		const { width, height } = bitmap;
		const found = isTaken ? { file, width, height } : await redrawn(bitmap);
		return { ...found, image: "file", name: text || t("source"), url: URL.createObjectURL(found.file) };
	} catch {
		throw new Error(t("source.broken", { name: text }));
	}
}

// Returns a picture that the server would not take, as one that it does
async function redrawn(bitmap) {
	const scale = Math.min(1, most / Math.max(bitmap.width, bitmap.height));
	const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
	const canvas = el("canvas", { width, height });
	canvas.getContext("2d").drawImage(bitmap, 0, 0, width, height);
	return { file: await new Promise((resolve) => canvas.toBlob(resolve)), width, height };
}

// Returns what the history has. Throws if it has it no more
async function opened(of) {
	const name = of.replace("history:", "");
	const image = await decoded(`/history/${name}`).catch(() => Promise.reject(new Error(t("source.lost"))));
	return { image: of, name, url: image.src, width: image.naturalWidth, height: image.naturalHeight };
}

async function decoded(url) {
	const image = el("img", { src: url });
	await image.decode();
	return image;
}

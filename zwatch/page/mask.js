// The brush: paints what is drawn anew on a picture, with a mouse, a pen, fingers or keys

import { open } from "./dialogs.js";
import { el, setText } from "./dom.js";
import { percent, t } from "./i18n.js";
import { applyOps, coverage, drawMask } from "./maskops.js";
import { extend, makeSlider, textButton, view } from "./parts.js";
import { coveredText } from "./sourcecard.js";
import { createZoom } from "./zoom.js";

extend(`
mask.help = Paint over what is to be drawn anew. Arrow keys move the brush (Shift: further), Space paints, Enter holds it down; E eraser, I invert, [ ] size, Ctrl+Z undo. = 涂抹要重绘的部分。方向键移动画笔（加 Shift 更远），空格键涂抹，回车键按住画笔；E 橡皮擦，I 反选，[ ] 大小，Ctrl+Z 撤销。
.canvas = Picture to paint on = 涂抹图片
.brush = Brush = 画笔
.erase = Eraser = 橡皮擦
.size = Brush size = 画笔大小
.undo = Undo = 撤销
.invert = Invert = 反选
.clear = Clear = 清空
.done = Done = 完成
.place = {left} from the left, {top} from the top = 距左 {left}，距上 {top}
`, `
.mask-stage{position:relative;flex:1;min-height:0;display:grid;place-items:center;overflow:hidden;background:#101013;container-type:size}
.mask-sheet{position:relative;aspect-ratio:var(--ratio);width:min(100cqw,100cqh * var(--ratio))}
.mask-sheet>*{position:absolute;inset:0;width:100%;height:100%}
.mask-sheet>canvas{opacity:.6;touch-action:none;cursor:none;outline-offset:-3px}
.mask-ring{position:absolute;border:1.5px solid #fff;border-radius:50%;box-shadow:0 0 0 1.5px #000;pointer-events:none}
.mask-ring.down{border-color:#ff1f5a}
.mask-tools{display:flex;flex-wrap:wrap;align-items:center;gap:.5rem;padding:.5rem 1rem}
.mask-tools .slider-row{flex:1 1 9rem;max-width:20rem}
.mask>:is(p,.mask-tools){margin:0;background:var(--raised)}
.mask>p{padding:0 1rem .5rem;font-size:.8125rem}
.mask-tools>.primary{margin-left:auto}
@media (max-width: 820px){.mask>.hint{display:none}}
`);

const MOST_SHOWN = 2048; // pixels of a side
const RIGHT_BUTTON = 2;
const PEN_ERASER = 32; // in `buttons`
let brush = 8; // percent of the longer side: kept while the page is open

// Opens the picture of `source` to paint its mask; `use(ops)` is called at each change. Returns a promise of its end
export function paintMask(announce, source, use) {
	const { url, width, height } = source;
	const longer = Math.max(width, height);
	const ops = [...source.ops];
	const pointers = new Map();
	let at = [width / 2, height / 2];
	let stroke = null; // while the brush is down
	let isErasing = false;
	let hasPen = false;
	let saying;

	const button = (name, onClick, properties) => textButton(t(`mask.${name}`), onClick, properties);
	const canvas = el("canvas", { tabIndex: 0, role: "application", "aria-label": t("mask.canvas"), "aria-describedby": "mask-help" });
	const sheet = el("div", { class: "mask-sheet" }, el("img", { src: url, alt: "", draggable: false }), canvas);
	sheet.style.setProperty("--ratio", String(width / height));
	const ring = el("div", { class: "mask-ring" });
	const stage = el("div", { class: "mask-stage" }, sheet, ring);
	const modes = [button("brush", () => erase(false)), button("erase", () => erase(true))];
	const back = button("undo", undo);
	const slider = makeSlider("mask-size", t("mask.size"), { least: 1, most: 60, step: 1 }, resize, (value) => percent(value / 100));
	const covered = el("p", { "aria-live": "polite" });
	const dialog = view("full mask", t("detail.mask"), el("span", { class: "space" }), stage,
		el("div", { class: "mask-tools" }, el("div", { class: "segments", role: "group" }, modes), slider.element, back,
			button("invert", () => add("invert")), button("clear", () => add("clear"), { class: "danger" }),
			button("done", () => dialog.close(), { class: "primary" })),
		covered, el("p", { class: "hint", id: "mask-help", text: t("mask.help") }));

	// Where an event is, in pixels of the picture
	function point({ clientX, clientY }) {
		const box = canvas.getBoundingClientRect();
		return [((clientX - box.left) / box.width) * width, ((clientY - box.top) / box.height) * height];
	}

	function press(event) {
		event.preventDefault();
		canvas.focus({ preventScroll: true });
		canvas.setPointerCapture(event.pointerId);
		pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
		hasPen ||= event.pointerType === "pen";
		// A second finger moves the picture, and what the first has begun is no stroke; beside a pen every finger does
		if (pointers.size > 1 || (hasPen && event.pointerType === "touch")) return drop();
		at = point(event);
		begin(event.button === RIGHT_BUTTON || Boolean(event.buttons & PEN_ERASER));
	}

	function move(event) {
		const last = pointers.get(event.pointerId);
		const now = { x: event.clientX, y: event.clientY };
		if (last) pointers.set(event.pointerId, now);
		if (last && !stroke) {
			const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
			return other ? zoom.pinch(last, now, other) : zoom.move(now.x - last.x, now.y - last.y);
		}
		for (const one of event.getCoalescedEvents?.() ?? []) extend(point(one));
		extend(point(event));
		drawRing(true);
	}

	function lift({ type, pointerId }) {
		pointers.delete(pointerId);
		type === "pointerup" ? end() : drop();
	}

	function begin(isEraser = false) {
		end();
		stroke = { points: [], size: Math.max(1, (brush / 100) * longer), erase: isErasing || isEraser };
		extend(at);
		drawRing();
	}

	// Moves the brush, which paints while it is down
	function extend(to) {
		at = to;
		if (!stroke) return;
		const last = stroke.points.slice(-2);
		const next = at.map((value) => Math.round(value * 10) / 10);
		stroke.points.push(...next);
		applyOps(canvas, width, [{ ...stroke, points: [...last, ...next] }]);
	}

	function end() {
		const done = stroke;
		stroke = null;
		if (done) add(done);
	}

	function drop() {
		stroke = null;
		redraw();
	}

	function add(op) {
		ops.push(op);
		redraw();
	}

	function undo() {
		ops.pop();
		redraw();
	}

	function redraw() {
		drawMask(canvas, { width, height, ops }, MOST_SHOWN);
		setText(covered, coveredText(coverage({ width, height, ops })));
		back.disabled = !ops.length;
		drawRing();
		use([...ops]);
	}

	function erase(value) {
		isErasing = value;
		modes.forEach((one, index) => (one.ariaPressed = isErasing === Boolean(index)));
	}

	function resize(size) {
		brush = Math.min(60, Math.max(1, Math.round(size)));
		slider.set(brush);
		drawRing(true);
	}

	// Keys on the picture itself
	function key(event) {
		const far = longer / (event.shiftKey ? 10 : 50);
		const [x, y] = { ArrowLeft: [-far, 0], ArrowRight: [far, 0], ArrowUp: [0, -far], ArrowDown: [0, far] }[event.key] ?? [];
		if (event.ctrlKey || event.metaKey || event.altKey) return;
		if (x !== undefined) {
			const within = (value, most) => Math.min(most, Math.max(0, value));
			extend([within(at[0] + x, width), within(at[1] + y, height)]);
			drawRing();
			clearTimeout(saying);
			const [left, top] = [percent(at[0] / width), percent(at[1] / height)];
			saying = setTimeout(() => announce(t("mask.place", { left, top })), 400);
		} else if (event.key === " ") event.repeat || begin();
		else if (event.key === "Enter") stroke ? end() : begin();
		else return;
		event.preventDefault();
	}

	// Keys anywhere in the view
	function command(event) {
		const uses = { e: () => erase(!isErasing), i: () => add("invert"), "[": () => resize(brush / 1.25 - 0.5), "]": () => resize(brush * 1.25 + 0.5) };
		const run = (event.ctrlKey || event.metaKey ? { z: undo } : uses)[event.key.toLowerCase()];
		if (event.altKey || event.defaultPrevented || !run) return;
		event.preventDefault();
		run();
	}

	// Shows where the brush is, if the pointer or the keys are on the picture
	function drawRing(isOver = false) {
		ring.hidden = !isOver && !stroke && document.activeElement !== canvas;
		ring.classList.toggle("down", Boolean(stroke));
		const [box, outer] = [canvas.getBoundingClientRect(), stage.getBoundingClientRect()];
		const scale = box.width / width;
		const side = Math.max(1, (brush / 100) * longer) * scale;
		const [left, top] = [box.left - outer.left + at[0] * scale, box.top - outer.top + at[1] * scale].map((value) => `${value - side / 2}px`);
		Object.assign(ring.style, { width: `${side}px`, height: `${side}px`, left, top });
	}

	const uses = {
		pointerdown: press, pointermove: move, pointerup: lift, pointercancel: lift, pointerleave: () => drawRing(), keydown: key,
		keyup: (event) => event.key === " " && end(), focus: () => drawRing(), contextmenu: (event) => event.preventDefault(),
		blur: () => {
			end();
			drawRing();
		},
	};
	for (const [name, run] of Object.entries(uses)) canvas.addEventListener(name, run);
	dialog.addEventListener("keydown", command);
	const opened = open(dialog);
	const fromMiddle = (x, y) => {
		const box = stage.getBoundingClientRect();
		return [x - box.left - box.width / 2, y - box.top - box.height / 2];
	};
	const zoom = createZoom(stage, () => [sheet.offsetWidth, sheet.offsetHeight], fromMiddle, ({ scale, x, y }) => {
		sheet.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
		drawRing();
	});
	erase(false);
	resize(brush);
	redraw();
	canvas.focus();
	return opened;
}

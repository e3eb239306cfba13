// Two pictures, over each other with a divider or side by side; both zoom and move together

import { el } from "./dom.js";
import { t } from "./i18n.js";

const MOST = 16; // times the size at which a picture fits

// Makes the surface; `onZoom(scale)` is told how large a picture's own pixel is on the screen
export function createPanes(onZoom) {
	const view = { scale: 1, x: 0, y: 0 };
	const [left, right] = ["left", "right"].map(makePane);
	const range = el("input", { type: "range", class: "divider-range", step: 0.5, "aria-label": t("compare.divider") });
	const line = el("div", { class: "divider" }, el("span", { "aria-hidden": "true", text: "‹ ›" }));
	const element = el("div", { class: "panes" }, left.pane, right.pane, line, range);
	const pointers = new Map();
	const isOver = () => element.classList.contains("over");

	function drawDivider() {
		line.style.left = `${range.value}%`;
		left.pane.style.clipPath = isOver() ? `inset(0 ${100 - range.value}% 0 0)` : "none";
		right.pane.style.clipPath = isOver() ? `inset(0 0 0 ${range.value}%)` : "none";
	}

	// How large a picture's own pixel is while all of the picture is seen
	function fitted() {
		const { image } = left.image.naturalWidth ? left : right;
		return image.naturalWidth ? Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight) : 1;
	}

	function draw() {
		for (const [axis, side] of [["x", "clientWidth"], ["y", "clientHeight"]]) {
			const most = ((view.scale - 1) * left.pane[side]) / 2;
			view[axis] = Math.min(most, Math.max(-most, view[axis]));
		}
		for (const { image } of [left, right]) image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
		onZoom(view.scale * fitted());
	}

	// The point at (x, y) from the middle of its pane stays where it is
	function zoomTo(wanted, [x, y] = [0, 0]) {
		const scale = Math.min(MOST, Math.max(1, wanted));
		const factor = scale / view.scale;
		Object.assign(view, { scale, x: x - (x - view.x) * factor, y: y - (y - view.y) * factor });
		draw();
	}

	function move(x, y) {
		view.x += x;
		view.y += y;
		draw();
	}

	function fromMiddle(x, y) {
		const boxes = [left, right].map(({ pane }) => pane.getBoundingClientRect());
		const box = !isOver() && x >= boxes[1].left ? boxes[1] : boxes[0];
		return [x - box.left - box.width / 2, y - box.top - box.height / 2];
	}

	function moveDivider(x) {
		const box = element.getBoundingClientRect();
		range.value = String(((x - box.left) / box.width) * 100);
		drawDivider();
	}

	element.addEventListener("pointerdown", (event) => {
		if (event.button > 0) return;
		event.preventDefault();
		element.setPointerCapture(event.pointerId);
		const onDivider = isOver() && (line.contains(event.target) || view.scale === 1);
		pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, onDivider });
		if (onDivider && pointers.size === 1) moveDivider(event.clientX);
	});
	element.addEventListener("pointermove", (event) => {
		const last = pointers.get(event.pointerId);
		if (!last) return;
		const [x, y] = [event.clientX, event.clientY];
		const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
		if (other) {
			const distance = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
			zoomTo((view.scale * distance({ x, y })) / distance(last), fromMiddle((x + other.x) / 2, (y + other.y) / 2));
		} else if (last.onDivider) moveDivider(x);
		else move(x - last.x, y - last.y);
		pointers.set(event.pointerId, { ...last, x, y });
	});
	for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, (event) => pointers.delete(event.pointerId));
	element.addEventListener("wheel", (event) => {
		event.preventDefault();
		zoomTo(view.scale * Math.exp(-event.deltaY / (event.deltaMode ? 12 : 300)), fromMiddle(event.clientX, event.clientY));
	}, { passive: false });
	range.addEventListener("input", drawDivider);
	new ResizeObserver(draw).observe(element);

	return {
		element,
		range,
		move,
		set: (side, picture) => setPicture({ left, right }[side], picture, draw),
		setMode(mode) {
			element.classList.toggle("over", mode === "over");
			range.hidden = line.hidden = mode !== "over";
			drawDivider();
			draw();
		},
		zoomBy: (factor) => zoomTo(view.scale * factor),
		fit: () => zoomTo(1),
		actual: () => zoomTo(1 / fitted()),
	};
}

function makePane(side) {
	const image = el("img", { draggable: false });
	const label = el("span", { class: `pane-label ${side}` });
	const words = el("div", { class: "pane-words" });
	return { pane: el("div", { class: `pane ${side}` }, image, label, words), image, label, words };
}

function setPicture({ image, label, words }, { url = null, alt = "", text = "", content = [] }, draw) {
	if (url === null) image.removeAttribute("src");
	else if (image.getAttribute("src") !== url) image.src = url;
	image.alt = alt;
	image.hidden = url === null;
	image.onload = draw;
	label.textContent = text;
	words.replaceChildren(...content);
}

// Two pictures, over each other with a divider or side by side; both zoom and move together

import { el } from "./dom.js";
import { t } from "./i18n.js";
import { createZoom } from "./zoom.js";

// Makes the surface; `onZoom(scale)` is told how large a picture's own pixel is on the screen
export function createPanes(onZoom) {
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

	function draw({ scale, x, y }) {
		for (const { image } of [left, right]) image.style.transform = `translate(${x}px, ${y}px) scale(${scale})`;
		onZoom(scale * fitted());
	}

	function fromMiddle(x, y) {
		const boxes = [left, right].map(({ pane }) => pane.getBoundingClientRect());
		const box = !isOver() && x >= boxes[1].left ? boxes[1] : boxes[0];
		return [x - box.left - box.width / 2, y - box.top - box.height / 2];
	}

	const zoom = createZoom(element, () => [left.pane.clientWidth, left.pane.clientHeight], fromMiddle, draw);

	function moveDivider(x) {
		const box = element.getBoundingClientRect();
		range.value = String(((x - box.left) / box.width) * 100);
		drawDivider();
	}

	element.addEventListener("pointerdown", (event) => {
		if (event.button > 0) return;
		event.preventDefault();
		element.setPointerCapture(event.pointerId);
		const onDivider = isOver() && (line.contains(event.target) || zoom.view.scale === 1);
		pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, onDivider });
		if (onDivider && pointers.size === 1) moveDivider(event.clientX);
	});
	element.addEventListener("pointermove", (event) => {
		const last = pointers.get(event.pointerId);
		if (!last) return;
		const [x, y] = [event.clientX, event.clientY];
		const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
		if (other) zoom.pinch(last, { x, y }, other);
		else if (last.onDivider) moveDivider(x);
		else zoom.move(x - last.x, y - last.y);
		pointers.set(event.pointerId, { ...last, x, y });
	});
	for (const name of ["pointerup", "pointercancel"]) element.addEventListener(name, (event) => pointers.delete(event.pointerId));
	range.addEventListener("input", drawDivider);

	return {
		element,
		range,
		move: zoom.move,
		set: (side, picture) => setPicture({ left, right }[side], picture, zoom.place),
		setMode(mode) {
			element.classList.toggle("over", mode === "over");
			range.hidden = line.hidden = mode !== "over";
			drawDivider();
			zoom.place();
		},
		zoomBy: (factor) => zoom.to(zoom.view.scale * factor),
		fit: () => zoom.to(1),
		actual: () => zoom.to(1 / fitted()),
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

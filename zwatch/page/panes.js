// Two pictures on one surface: over each other with a divider, or side by side; both zoom and move together.

import { el } from "./dom.js";
import { t } from "./i18n.js";

const MOST = 16;
const SIDES = ["left", "right"];

/** Makes the surface. Returns {element, set(side, picture), setMode(mode), zoomBy(factor), fit(), actual(), key(event)}. */
export function createPanes(onZoom) {
  const view = { scale: 1, x: 0, y: 0 };
  const layers = Object.fromEntries(SIDES.map((side) => [side, makeLayer(side)]));
  const range = el("input", { type: "range", class: "divider-range", min: 0, max: 100, step: 0.5, value: "50", "aria-label": t("compare.divider") });
  const line = el("div", { class: "divider" }, el("span", { class: "divider-grip", "aria-hidden": "true", text: "‹ ›" }));
  const element = el("div", { class: "panes over" }, layers.left.pane, layers.right.pane, line, range);
  const pointers = new Map();

  function drawDivider() {
    line.style.left = `${range.value}%`;
    layers.left.pane.style.clipPath = isOver() ? `inset(0 ${100 - range.value}% 0 0)` : "none";
    layers.right.pane.style.clipPath = isOver() ? `inset(0 0 0 ${range.value}%)` : "none";
  }

  const isOver = () => element.classList.contains("over");

  function draw() {
    const limitX = (Math.max(0, view.scale - 1) * layers.left.pane.clientWidth) / 2;
    const limitY = (Math.max(0, view.scale - 1) * layers.left.pane.clientHeight) / 2;
    view.x = Math.min(limitX, Math.max(-limitX, view.x));
    view.y = Math.min(limitY, Math.max(-limitY, view.y));
    for (const side of SIDES) {
      layers[side].image.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.scale})`;
    }
    element.classList.toggle("zoomed", view.scale > 1);
    onZoom(view.scale * fitted());
  }

  // How large a picture's own pixel is on the screen while the view shows all of it.
  function fitted() {
    const { image } = layers.left.image.naturalWidth ? layers.left : layers.right;
    if (!image.naturalWidth) return 1;
    return Math.min(image.clientWidth / image.naturalWidth, image.clientHeight / image.naturalHeight);
  }

  /** Zooms, the point at (x, y) from the middle of its pane stays where it is. */
  function zoomTo(scale, x = 0, y = 0) {
    const next = Math.min(MOST, Math.max(1, scale));
    view.x = x - ((x - view.x) * next) / view.scale;
    view.y = y - ((y - view.y) * next) / view.scale;
    view.scale = next;
    draw();
  }

  function fromMiddle(x, y) {
    const panes = SIDES.map((side) => layers[side].pane.getBoundingClientRect());
    const box = !isOver() && x >= panes[1].left && y >= panes[1].top ? panes[1] : panes[0];
    return [x - box.left - box.width / 2, y - box.top - box.height / 2];
  }

  function moveDivider(x) {
    const box = element.getBoundingClientRect();
    range.value = String(Math.min(100, Math.max(0, ((x - box.left) / box.width) * 100)));
    drawDivider();
  }

  function pressed(event) {
    if (event.target === range || event.target.closest("button") || event.button > 0) return;
    event.preventDefault();
    element.setPointerCapture(event.pointerId);
    const onDivider = isOver() && (line.contains(event.target) || view.scale === 1);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY, onDivider });
    if (onDivider && pointers.size === 1) moveDivider(event.clientX);
  }

  function moved(event) {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const next = { ...last, x: event.clientX, y: event.clientY };
    if (pointers.size === 2) {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const distance = (one) => Math.hypot(one.x - other.x, one.y - other.y) || 1;
      const middle = fromMiddle((next.x + other.x) / 2, (next.y + other.y) / 2);
      zoomTo((view.scale * distance(next)) / distance(last), ...middle);
    } else if (last.onDivider) moveDivider(event.clientX);
    else {
      view.x += next.x - last.x;
      view.y += next.y - last.y;
      draw();
    }
    pointers.set(event.pointerId, next);
  }

  element.addEventListener("pointerdown", pressed);
  element.addEventListener("pointermove", moved);
  for (const name of ["pointerup", "pointercancel"]) {
    element.addEventListener(name, (event) => pointers.delete(event.pointerId));
  }
  element.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomTo(view.scale * Math.exp(-event.deltaY / (event.deltaMode ? 12 : 300)), ...fromMiddle(event.clientX, event.clientY));
  }, { passive: false });
  element.addEventListener("dblclick", (event) => {
    if (view.scale > 1) zoomTo(1);
    else zoomTo(2 / Math.min(1, fitted()), ...fromMiddle(event.clientX, event.clientY));
  });
  range.addEventListener("input", drawDivider);
  new ResizeObserver(draw).observe(element);
  drawDivider();

  return {
    element,
    range,
    set: (side, picture) => setPicture(layers[side], picture, draw),
    setMode(mode) {
      element.classList.toggle("over", mode === "over");
      range.hidden = line.hidden = mode !== "over";
      drawDivider();
      draw();
    },
    zoomBy: (factor) => zoomTo(view.scale * factor),
    fit: () => zoomTo(1),
    actual: () => zoomTo(1 / fitted()),
    move(x, y) {
      view.x += x;
      view.y += y;
      draw();
    },
  };
}

function makeLayer(side) {
  const image = el("img", { draggable: false });
  const label = el("span", { class: `pane-label ${side}` });
  const words = el("div", { class: "pane-words", hidden: true });
  return { pane: el("div", { class: `pane ${side}` }, image, label, words), image, label, words };
}

function setPicture({ image, label, words }, { url = null, alt = "", text = "", content = [] }, draw) {
  if (url === null) image.removeAttribute("src");
  else if (image.getAttribute("src") !== url) image.src = url;
  image.alt = alt;
  image.hidden = url === null;
  image.onload = draw;
  label.textContent = text;
  label.hidden = text === "";
  words.hidden = content.length === 0;
  words.replaceChildren(...content);
}

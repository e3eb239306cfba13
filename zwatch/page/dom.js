// Making and finding elements. The Content-Security-Policy allows no inline styles

export const byId = (id) => document.getElementById(id);

// The dialog in front, or the page: what is outside it is neither clicked nor spoken
export const front = () => [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;

/**
 * Makes an element. Properties: `text`, `label` (name and tooltip), `on` (event listeners by name), `data` (data
 * attributes); a property of the element is set as such, all else as an attribute. Children that are null or false are left out.
 */
export function el(tag, properties = {}, ...children) {
	const element = document.createElement(tag);
	for (const [name, value] of Object.entries(properties)) {
		if ((value ?? false) === false) continue;
		if (name === "text") element.textContent = value;
		else if (name === "on") for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
		else if (name === "label") element.ariaLabel = element.title = value;
		else if (name === "data") Object.assign(element.dataset, value);
		else if (name in element && !name.includes("-") && typeof value !== "string") element[name] = value;
		else element.setAttribute(name, value === true ? "" : value);
	}
	element.append(...children.flat().filter(Boolean));
	return element;
}

// Strokes on a grid of 24 x 24
const ICONS = {
	again: "M4 11a8 8 0 0 1 14-4.5L20 9M20 4v5h-5M20 13a8 8 0 0 1-14 4.5L4 15m0 5v-5h5",
	bell: "M6 16V11a6 6 0 0 1 12 0v5l2 2H4zM10 21h4",
	close: "M6 6l12 12M18 6L6 18",
	copy: "M9 9h11v11H9zM5 15H4V4h11v1",
	dice: "M4 4h16v16H4zM8.5 8.5h.01M15.5 8.5h.01M12 12h.01M8.5 15.5h.01M15.5 15.5h.01",
	down: "M12 4v12M6 11l6 6 6-6M5 21h14",
	image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9h.01",
	flip: "M7 4L4 7l3 3M4 7h11a5 5 0 0 1 5 5v1M17 20l3-3-3-3M20 17H9a5 5 0 0 1-5-5v-1",
	lock: "M6 11h12v9H6zM8 11V8a4 4 0 0 1 8 0v3",
	seed: "M12 21V11M12 11C12 7 9 5 5 5c0 4 3 6 7 6zM12 14c0-3 2-5 7-5 0 4-3 5-7 5z",
	trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13",
	thumb: "M7 11v9H4v-9zM7 11l4-8c2 0 2.5 1.5 2 3l-1 4h6c1.5 0 2 1 1.7 2.5l-1.3 6c-.3 1-1 1.5-2 1.5H7",
	unlock: "M6 11h12v9H6zM8 11V8a4 4 0 0 1 7.5-2",
};

// Makes an icon; its button needs a label
export function icon(name) {
	const host = el("i");
	host.innerHTML = `<svg viewBox="0 0 24 24" class="icon" aria-hidden="true"><path d="${ICONS[name]}"/></svg>`;
	return host.firstChild;
}

// Makes a button with an icon only; the label is its name and its tooltip
export function iconButton(name, label, onClick, properties = {}) {
	return el("button", { type: "button", class: "icon-button", label, on: { click: onClick }, ...properties }, icon(name));
}

// Sets an element's text, if it is another, so that a live region speaks only what changed
export function setText(element, text) {
	if (element.textContent !== text) element.textContent = text;
}

export function show(element, visible) {
	element.hidden = !visible;
}

// Whether an event's target takes typed text, so that keys belong to it
export const isTyping = (target) => Boolean(target.closest?.("textarea, input:not([type=checkbox]):not([type=range]), select, [contenteditable]"));

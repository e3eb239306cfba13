// A list of pictures (a strip or a grid) of any length of which only what is seen is in the document

import { el } from "./dom.js";
import { loadThumb, makeThumb, updateThumb } from "./thumbs.js";

const SETTLE_MS = 70;
const AHEAD = 20; // rows that are loaded before they come into view

/**
 * Shows `HistoryRows`. `options`: `horizontal`; `layout() → {columns, side, gap}` in pixels; `isShown(row)`; `pick(row, event)`; where
 * wanted `use(row, options)`, and `onActive(row)` when the keyboard moves to a picture.
 */
export class VirtualList {
	constructor(scroller, list, rows, options) {
		Object.assign(this, { scroller, list, rows, options, active: null, size: null, frame: 0, timer: 0 });
		this.items = new Map();
		this.seen = []; // [key, cell] of what is in view
		this.lead = 0; // cells left empty at the beginning, so that what is seen stays in its column
		this.names = options.horizontal ? ["clientWidth", "scrollLeft", "width"] : ["clientHeight", "scrollTop", "height"];
		scroller.addEventListener("scroll", () => (this.frame ||= requestAnimationFrame(() => this.render())), { passive: true });
		list.addEventListener("keydown", (event) => this.key(event));
		list.addEventListener("focusin", (event) => {
			this.active = event.target.closest("li").querySelector(".thumb").dataset.name;
			this.render();
		});
		new ResizeObserver(() => this.render()).observe(scroller);
	}

	get view() {
		return this.scroller[this.names[0]];
	}

	get offset() {
		return this.scroller[this.names[1]];
	}

	set offset(value) {
		this.scroller[this.names[1]] = value;
	}

	get count() {
		return this.rows.total;
	}

	get step() {
		return this.size.side + this.size.gap;
	}

	// A name that stays with its item; only the place, as long as the row is not loaded
	keyOf(index) {
		return this.rows.row(index)?.name ?? index;
	}

	// Shows the rows as they are now. What is seen stays where it is
	refresh() {
		const [key, cell] = this.seen.find(([one]) => this.rows.indexOf(one) >= 0) ?? [];
		if (this.offset > 0 && cell >= 0) {
			const { columns } = this.size;
			const by = this.rows.indexOf(key) - cell;
			const lines = Math.ceil(by / columns);
			this.lead = lines * columns - by;
			if (this.measure()) this.offset += lines * this.step;
		}
		this.render();
	}

	// Draws now: adds the items that came into view, takes out those that left it
	render() {
		cancelAnimationFrame(this.frame);
		this.frame = 0;
		if (this.offset <= 0) this.lead = 0;
		if (!this.measure()) return;
		const { rows } = this;
		const { columns } = this.size;
		const over = Math.ceil(this.view / this.step / 2);
		const top = Math.floor(this.offset / this.step) * columns - this.lead;
		const first = Math.max(0, top - over * columns);
		const end = Math.min(this.count, (Math.ceil((this.offset + this.view) / this.step) + over) * columns - this.lead);
		const wanted = new Map();
		for (let index = first; index < end; index++) wanted.set(this.keyOf(index), index);
		this.seen = [...wanted].filter(([, index]) => index >= top).map(([key, index]) => [key, index + this.lead]);
		if (rows.indexOf(this.active) < 0) this.active = this.count ? this.keyOf(Math.min(first, this.count - 1)) : null;
		for (const [key, item] of this.items) {
			// An item with the focus stays while it exists: without it the keyboard would start at the top again
			if (wanted.has(key) || (item.contains(document.activeElement) && rows.indexOf(key) >= 0)) continue;
			item.remove();
			this.items.delete(key);
		}
		let previous = null;
		for (const [key, index] of wanted) previous = this.place(key, index, previous);
		rows.view = [first - AHEAD, end + AHEAD];
		const need = () => rows.isLoading || rows.need(first - AHEAD, end + AHEAD);
		if (rows.row(first) || rows.row(end - 1)) need();
		clearTimeout(this.timer);
		// What is only scrolled or jumped past costs the server nothing
		this.timer = setTimeout(() => {
			need();
			for (const [key, item] of this.items) loadThumb(item, rows.row(rows.indexOf(key)), rows);
		}, SETTLE_MS);
	}

	// Brings an item into view and, with `focus`, gives it the focus
	reveal(index, focus = false) {
		if (index < 0 || index >= this.count || !this.measure()) return;
		this.active = this.keyOf(index);
		const { step, view, offset } = this;
		const start = Math.floor((index + this.lead) / this.size.columns) * step;
		const margin = Math.min(step / 2, Math.max(0, (view - step) / 2));
		if (start - margin < offset) this.offset = start - margin;
		else if (start + step + margin > offset + view) this.offset = start + step + margin - view;
		this.render();
		if (focus) this.items.get(this.active)?.querySelector(".thumb").focus({ preventScroll: true });
	}

	place(key, index, previous) {
		const item = this.items.get(key) ?? makeThumb(this.rows.row(index), this.rows, this.options);
		this.items.set(key, item);
		const { columns, side } = this.size;
		const cell = index + this.lead;
		const [column, line] = this.options.horizontal ? [cell, 0] : [cell % columns, Math.floor(cell / columns)];
		item.style.transform = `translate(${column * this.step}px, ${line * this.step}px)`;
		item.style.width = item.style.height = `${side}px`;
		item.ariaSetSize = this.count;
		item.ariaPosInSet = index + 1;
		item.querySelector(".thumb").tabIndex = key === this.active ? 0 : -1;
		if (this.rows.row(index)) updateThumb(item, index, this.rows, this.options);
		// In the list's order, so that a screen reader and Tab meet them as they are seen
		const expected = previous ? previous.nextSibling : this.list.firstChild;
		if (expected !== item) this.list.insertBefore(item, expected);
		return item;
	}

	measure() {
		if (!this.scroller.clientWidth || !this.scroller.clientHeight) return false; // it is not shown
		const before = this.size;
		this.size = this.options.layout();
		const { columns, side, gap } = this.size;
		const length = Math.max(0, Math.ceil((this.count + this.lead) / columns) * this.step - gap);
		this.list.style[this.names[2]] = `${length}px`;
		// A window of another size shows the same pictures
		if (before && (before.columns !== columns || before.side !== side)) {
			this.offset *= (before.columns * this.step) / columns / (before.side + before.gap);
		}
		return true;
	}

	async key(event) {
		if (!event.target.classList.contains("thumb") || event.ctrlKey || event.metaKey || event.altKey || event.shiftKey) return;
		const { columns } = this.size;
		const page = Math.max(1, Math.floor(this.view / this.step)) * columns;
		const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -page, PageDown: page, Home: -this.count, End: this.count };
		if (!this.options.horizontal) Object.assign(steps, { ArrowUp: -columns, ArrowDown: columns });
		if (!(event.key in steps)) return;
		event.preventDefault();
		event.stopPropagation(); // the page's own arrows would walk a second time
		const index = Math.min(this.count - 1, Math.max(0, this.rows.indexOf(this.active) + steps[event.key]));
		await this.rows.need(index, index + 1);
		if (!this.rows.row(index)) return;
		this.reveal(index, true);
		this.options.onActive?.(this.rows.row(index));
	}
}

export function createStrip(rows, label, options) {
	const list = el("ul", { class: "strip-list", "aria-label": label });
	const layout = () => ({ columns: 1, side: list.clientHeight, gap: 8 });
	return new VirtualList(el("div", { class: "strip-scroller" }, list), list, rows, { horizontal: true, layout, ...options });
}

// A list (a strip or a grid) of any length of which only what is seen is in the document

const SETTLE_MS = 70;
const AHEAD = 20; // lines before the end at which more is asked for

/**
 * Shows items of one size. `options`: `horizontal`; `layout() → {columns, side, gap}` in pixels; `keyOf(index)`, a name that
 * stays with its item, and `indexOf(key)`; `make(index) → <li>` with a button `.thumb`; `update(item, index)`; `settled(item,
 * index)` once it has stayed in view; `onEnd()` near the end; `onActive(index)` when the keyboard moves to an item.
 */
export class VirtualList {
	constructor(scroller, list, options) {
		Object.assign(this, { scroller, list, options, count: 0, active: null, size: null });
		this.items = new Map();
		this.frame = 0;
		this.timer = 0;
		const { horizontal } = options;
		this.names = horizontal ? ["clientWidth", "scrollLeft", "width"] : ["clientHeight", "scrollTop", "height"];
		scroller.addEventListener("scroll", () => (this.frame ||= requestAnimationFrame(() => this.render())), { passive: true });
		list.addEventListener("keydown", (event) => this.key(event));
		list.addEventListener("focusin", (event) => this.activate(event.target.closest("li")));
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

	get step() {
		return this.size.side + this.size.gap;
	}

	// Shows another number of items; `added` of them came in before the others, which stay where they are seen
	setCount(count, added = 0) {
		this.count = count;
		if (!this.measure()) return;
		const { columns } = this.size;
		const line = Math.floor(this.offset / this.step);
		if (added > 0 && this.offset > 0) this.offset += (Math.floor((line * columns + added) / columns) - line) * this.step;
		this.render();
	}

	// Draws now: adds the items that came into view, takes out those that left it
	render() {
		cancelAnimationFrame(this.frame);
		this.frame = 0;
		if (!this.measure()) return;
		const { keyOf, indexOf } = this.options;
		const { columns } = this.size;
		const over = Math.ceil(this.view / this.step / 2);
		const first = Math.max(0, Math.floor(this.offset / this.step) - over) * columns;
		const end = Math.min(this.count, (Math.ceil((this.offset + this.view) / this.step) + over) * columns);
		const wanted = new Map();
		for (let index = first; index < end; index++) wanted.set(keyOf(index), index);
		if (indexOf(this.active) < 0) this.active = this.count ? keyOf(Math.min(first, this.count - 1)) : null;
		for (const [key, item] of this.items) {
			// An item with the focus stays while it exists: without it the keyboard would start at the top again
			if (wanted.has(key) || (item.contains(document.activeElement) && indexOf(key) >= 0)) continue;
			item.remove();
			this.items.delete(key);
		}
		let previous = null;
		for (const [key, index] of wanted) previous = this.place(key, index, previous);
		clearTimeout(this.timer);
		this.timer = setTimeout(() => this.settle(), SETTLE_MS);
		if (end + columns * AHEAD >= this.count) this.options.onEnd();
	}

	// Brings an item into view and, with `focus`, gives it the focus
	reveal(index, focus = false) {
		if (index < 0 || index >= this.count || !this.measure()) return;
		this.active = this.options.keyOf(index);
		const { step, view, offset } = this;
		const start = Math.floor(index / this.size.columns) * step;
		const margin = Math.min(step / 2, Math.max(0, (view - step) / 2));
		if (start - margin < offset) this.offset = start - margin;
		else if (start + step + margin > offset + view) this.offset = start + step + margin - view;
		this.render();
		if (focus) this.items.get(this.active)?.querySelector(".thumb").focus({ preventScroll: true });
	}

	place(key, index, previous) {
		const item = this.items.get(key) ?? this.options.make(index);
		this.items.set(key, item);
		const { columns, side } = this.size;
		const [column, line] = this.options.horizontal ? [index, 0] : [index % columns, Math.floor(index / columns)];
		item.style.transform = `translate(${column * this.step}px, ${line * this.step}px)`;
		item.style.width = item.style.height = `${side}px`;
		item.ariaSetSize = this.count;
		item.ariaPosInSet = index + 1;
		item.querySelector(".thumb").tabIndex = key === this.active ? 0 : -1;
		this.options.update(item, index);
		// In the list's order, so that a screen reader and Tab meet them as they are seen
		const expected = previous ? previous.nextSibling : this.list.firstChild;
		if (expected !== item) this.list.insertBefore(item, expected);
		return item;
	}

	settle() {
		for (const [key, item] of this.items) {
			const index = this.options.indexOf(key);
			if (index >= 0) this.options.settled(item, index);
		}
	}

	measure() {
		if (!this.scroller.clientWidth || !this.scroller.clientHeight) return false; // it is not shown
		this.size = this.options.layout();
		const length = Math.max(0, Math.ceil(this.count / this.size.columns) * this.step - this.size.gap);
		this.list.style[this.names[2]] = `${length}px`;
		return true;
	}

	activate(item) {
		for (const [key, one] of this.items) {
			if (one === item) this.active = key;
			one.querySelector(".thumb").tabIndex = one === item ? 0 : -1;
		}
	}

	key(event) {
		if (!event.target.classList.contains("thumb") || event.ctrlKey || event.metaKey || event.altKey) return;
		const { horizontal, indexOf, onActive } = this.options;
		const { columns } = this.size;
		const page = Math.max(1, Math.floor(this.view / this.step)) * columns;
		const steps = { ArrowLeft: -1, ArrowRight: 1, PageUp: -page, PageDown: page, Home: -this.count, End: this.count };
		if (!horizontal) Object.assign(steps, { ArrowUp: -columns, ArrowDown: columns });
		if (!(event.key in steps)) return;
		event.preventDefault();
		event.stopPropagation(); // the page's own arrows would walk a second time
		const index = Math.min(this.count - 1, Math.max(0, indexOf(this.active) + steps[event.key]));
		this.reveal(index, true);
		onActive(index);
	}
}

// A list of any length of which only what is seen is in the document: a strip that scrolls sideways, or a grid.

const SETTLE_MS = 70;

/**
 * Shows `count` items of one size in `list`, which lies in `scroller`. `options`:
 * `horizontal`; `layout() → {columns, width, height, gap}` in pixels; `keyOf(index)`, a name that stays with its item, and
 * `indexOf(key)`; `make(index) → <li>` with one `.thumb` button; `update(item, index)` when its number changes; `settled(item)` once it has
 * stayed in view; `onEnd()` near the end; `onActive(index)` when the keyboard moves to an item.
 */
export class VirtualList {
  constructor(scroller, list, options) {
    Object.assign(this, { scroller, list, options, count: 0, active: null });
    this._items = new Map();
    this._size = { columns: 1, width: 1, height: 1, gap: 0 };
    this._frame = 0;
    this._timer = 0;
    scroller.addEventListener("scroll", () => this.schedule(), { passive: true });
    list.addEventListener("keydown", (event) => this._key(event));
    list.addEventListener("focusin", (event) => this._focused(event));
    new ResizeObserver(() => this._resized()).observe(scroller);
  }

  /** Shows another number of items; `added` of them came in before those that were there. */
  setCount(count, added = 0) {
    this.count = count;
    const offset = this._offset();
    if (added > 0 && offset > 0) {
      const { columns } = this._size;
      const line = Math.floor(offset / this._step());
      const moved = Math.floor((line * columns + added) / columns) - line;
      this._stretch();
      this._scrollTo(offset + moved * this._step());
    }
    this.render();
  }

  /** Draws at the next frame. */
  schedule() {
    if (!this._frame) this._frame = requestAnimationFrame(() => this.render());
  }

  /** Draws now: adds the items that came into view, takes out those that left it. */
  render() {
    cancelAnimationFrame(this._frame);
    this._frame = 0;
    if (!this._measure()) return;
    this._stretch();
    const [first, end] = this._range();
    const wanted = new Map();
    for (let index = first; index < end; index++) wanted.set(this.options.keyOf(index), index);
    if (this.active === null || !this._has(this.active)) this.active = this.count ? this.options.keyOf(first) : null;
    this._drop(wanted);
    let previous = null;
    for (const [key, index] of wanted) {
      previous = this._place(key, index, previous);
    }
    clearTimeout(this._timer);
    this._timer = setTimeout(() => this._settle(), SETTLE_MS);
    if (end + this._size.columns * 20 >= this.count) this.options.onEnd();
  }

  /** Brings an item into view and, with `focus`, gives it the focus. */
  reveal(index, focus = false) {
    if (index < 0 || index >= this.count) return;
    this.active = this.options.keyOf(index);
    if (!this._measure()) return;
    const step = this._step();
    const start = Math.floor(index / this._size.columns) * step;
    const view = this._view();
    const offset = this._offset();
    const margin = Math.min(step / 2, Math.max(0, (view - step) / 2));
    if (start - margin < offset) this._scrollTo(start - margin);
    else if (start + step + margin > offset + view) this._scrollTo(start + step + margin - view);
    this.render();
    if (focus) this._items.get(this.active)?.querySelector(".thumb").focus({ preventScroll: true });
  }

  /** Makes every item again, because what they show has changed. */
  rebuild() {
    for (const item of this._items.values()) item.remove();
    this._items.clear();
    this.render();
  }

  _place(key, index, previous) {
    let item = this._items.get(key);
    if (!item) {
      item = this.options.make(index);
      this._items.set(key, item);
    }
    const { columns, width, height, gap } = this._size;
    const line = Math.floor(index / columns);
    const x = this.options.horizontal ? index * (width + gap) : (index % columns) * (width + gap);
    const y = this.options.horizontal ? 0 : line * (height + gap);
    item.style.transform = `translate(${x}px, ${y}px)`;
    item.style.width = `${width}px`;
    item.style.height = `${height}px`;
    item.setAttribute("aria-setsize", this.count);
    item.setAttribute("aria-posinset", index + 1);
    item.querySelector(".thumb").tabIndex = key === this.active ? 0 : -1;
    this.options.update(item, index);
    // In the list's order, so that a screen reader and Tab meet them as they are seen.
    const expected = previous ? previous.nextSibling : this.list.firstChild;
    if (expected !== item) this.list.insertBefore(item, expected);
    return item;
  }

  _drop(wanted) {
    for (const [key, item] of this._items) {
      // An item with the focus stays while its picture exists: without it the keyboard would start at the top again.
      if (wanted.has(key) || (item.contains(document.activeElement) && this._has(key))) continue;
      item.remove();
      this._items.delete(key);
    }
  }

  _has(key) {
    return this.options.indexOf(key) >= 0;
  }

  _settle() {
    for (const item of this._items.values()) this.options.settled(item);
  }

  _resized() {
    const index = Math.floor(this._offset() / this._step()) * this._size.columns;
    if (!this._measure()) return;
    this._stretch();
    if (this._offset() > 0) this._scrollTo(Math.floor(index / this._size.columns) * this._step());
    this.render();
  }

  _measure() {
    if (!this.scroller.clientWidth || !this.scroller.clientHeight) return false; // it is not shown
    this._size = this.options.layout();
    return true;
  }

  _stretch() {
    const { columns, gap } = this._size;
    const length = Math.max(0, Math.ceil(this.count / columns) * this._step() - gap);
    if (this.options.horizontal) this.list.style.width = `${length}px`;
    else this.list.style.height = `${length}px`;
  }

  _range() {
    const { columns } = this._size;
    const step = this._step();
    const over = Math.ceil(this._view() / step / 2);
    const first = Math.max(0, Math.floor(this._offset() / step) - over);
    const end = Math.ceil((this._offset() + this._view()) / step) + over;
    return [Math.min(this.count, first * columns), Math.min(this.count, end * columns)];
  }

  _step() {
    const { width, height, gap } = this._size;
    return (this.options.horizontal ? width : height) + gap;
  }

  _view() {
    return this.options.horizontal ? this.scroller.clientWidth : this.scroller.clientHeight;
  }

  _offset() {
    return this.options.horizontal ? this.scroller.scrollLeft : this.scroller.scrollTop;
  }

  _scrollTo(offset) {
    if (this.options.horizontal) this.scroller.scrollLeft = offset;
    else this.scroller.scrollTop = offset;
  }

  _focused(event) {
    const item = event.target.closest("li");
    for (const [key, one] of this._items) {
      if (one === item) this.active = key;
      one.querySelector(".thumb").tabIndex = one === item ? 0 : -1;
    }
  }

  _key(event) {
    if (!event.target.classList.contains("thumb") || event.ctrlKey || event.metaKey || event.altKey) return;
    const { columns } = this._size;
    const page = Math.max(1, Math.floor(this._view() / this._step())) * columns;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns, PageUp: -page, PageDown: page };
    if (this.options.horizontal) delete steps.ArrowUp, delete steps.ArrowDown;
    const index = this.options.indexOf(this.active);
    const wanted = event.key === "Home" ? 0 : event.key === "End" ? this.count - 1 : index + steps[event.key];
    if (!(event.key in steps) && event.key !== "Home" && event.key !== "End") return;
    event.preventDefault();
    event.stopPropagation(); // the page's own arrows would walk a second time
    const target = Math.min(this.count - 1, Math.max(0, wanted));
    this.reveal(target, true);
    this.options.onActive(target);
  }
}

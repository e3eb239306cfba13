// The rows of the history that are loaded: the newest first, more when they are scrolled to, new ones as they are made.

const PAGE = 100;
const NEWEST = 20; // enough to see what is new since the last look
const MOST = 500; // the most that one call answers

/** A list of pictures, all or those that a filter `{q, version, seed}` leaves. `onChange(change)` follows each change. */
export class HistoryRows {
  constructor(api, onChange) {
    this.rows = [];
    this.total = 0;
    this.indexed = 1;
    this.loaded = false;
    this.loading = false;
    this.error = null;
    this.hidden = new Set(); // names whose deletion can still be undone
    this._api = api;
    this._onChange = onChange;
    this._filter = {};
    this._next = null;
    this._era = 0; // answers to an earlier filter are dropped
    this._turn = Promise.resolve();
    this._texts = new Map();
    this._places = new Map();
    this._placed = null;
  }

  /** Returns where a picture is in the list, or -1. */
  indexOf(name) {
    if (this._placed !== this.rows || this._places.size !== this.rows.length) {
      this._places = new Map(this.rows.map((row, index) => [row.name, index]));
      this._placed = this.rows;
    }
    return this._places.get(name) ?? -1;
  }

  /** Whether older pictures can be loaded. */
  get hasMore() {
    return this._next !== null;
  }

  /** Loads the first page, with another filter if one is given. */
  reset(filter = this._filter) {
    this._filter = filter;
    const era = ++this._era;
    return this._run(era, () => this._first(era, PAGE));
  }

  /** Loads the next page. */
  more() {
    if (this.loading || !this.hasMore) return this._turn;
    const era = this._era;
    return this._run(era, async () => {
      if (this._next === null) return;
      const page = await this._page(PAGE, this._next);
      if (era !== this._era) return;
      this.rows = [...this.rows, ...page.rows];
      this._take(page);
      this._tell({});
    });
  }

  /** Adds what is new, and drops what was deleted elsewhere. */
  refresh() {
    const era = this._era;
    return this._run(era, async () => {
      if (!this.rows.length) return this._first(era, PAGE);
      const page = await this._page(NEWEST);
      if (era !== this._era) return undefined;
      const known = new Set(this.rows.slice(0, MOST).map((row) => row.name));
      const met = page.rows.findIndex((row) => known.has(row.name));
      const added = page.rows.filter((row) => !known.has(row.name));
      if (met !== added.length || page.total !== this.total + added.length) {
        return this._first(era, Math.min(MOST, Math.max(PAGE, this.rows.length + added.length)));
      }
      this.rows = [...added, ...this.rows];
      this.total = page.total;
      this.indexed = page.indexed;
      return this._tell({ added: added.length });
    });
  }

  /** Takes rows out of the list: they are deleted, or will be unless that is undone. */
  remove(names) {
    const gone = new Set(names);
    const before = this.rows.length;
    this.rows = this.rows.filter((row) => !gone.has(row.name));
    this.total -= before - this.rows.length;
    this._tell({});
  }

  async _first(era, limit) {
    const page = await this._page(limit);
    if (era !== this._era) return;
    const before = new Map(this.rows.map((row, index) => [row.name, index]));
    const same = page.rows.findIndex((row) => before.has(row.name));
    const added = same < 0 || !this.loaded ? 0 : Math.max(0, same - before.get(page.rows[same].name));
    this.rows = page.rows;
    this._take(page);
    this.loaded = true;
    this._tell({ added, replaced: same < 0 });
  }

  _take(page) {
    this.total = page.total;
    this.indexed = page.indexed;
    this._next = page.next;
  }

  async _page(limit, before) {
    const query = new URLSearchParams({ limit });
    if (before) query.set("before", before);
    for (const [name, value] of Object.entries(this._filter)) {
      if (value) query.set(name, value);
    }
    const page = await this._api.call("GET", `/history?${query}`);
    const rows = page.images.filter((row) => !this.hidden.has(row.name)).map((row) => this._shared(row));
    return { rows, total: page.total - this.hidden.size, next: page.next, indexed: page.indexed ?? 1 };
  }

  // Rows repeat a few long texts; one copy of each keeps 100,000 rows small.
  _shared(row) {
    for (const field of ["digest", "version", "prompt", "negative_prompt"]) {
      const text = row[field];
      if (typeof text !== "string") continue;
      if (!this._texts.has(text)) this._texts.set(text, text);
      row[field] = this._texts.get(text);
    }
    return row;
  }

  // One call after another: two answers that overlap would leave a picture out or list it twice.
  _run(era, work) {
    const next = this._turn.then(async () => {
      if (era !== this._era) return;
      this.loading = true;
      try {
        await work();
        this.error = null;
      } catch (error) {
        if (era === this._era) this.error = error;
      } finally {
        this.loading = false;
      }
      if (this.error && era === this._era) this._tell({});
    });
    this._turn = next;
    return next;
  }

  _tell(change) {
    this._onChange(change);
  }
}

// The loaded rows of the history: the newest first, more when they are scrolled to, new ones as they are made

const PAGE = 100;
const NEWEST = 20; // enough to see what is new since the last look
const MOST = 500; // the most that one call answers

// A list of pictures, all or those that a filter `{q, version, seed}` leaves. `onChange(added)` follows each change
export class HistoryRows {
	constructor(api, onChange) {
		this.rows = [];
		this.total = 0;
		this.indexed = 1; // which part of the history the server has read for searches
		this.loaded = false;
		this.error = null;
		this.hidden = new Set(); // names whose deletion can still be undone
		this.api = api;
		this.onChange = onChange;
		this.filter = {};
		this.next = null;
		this.era = 0; // an answer to an earlier filter is dropped
		this.turn = Promise.resolve();
		this.isLoading = false;
		this.places = { rows: null, byName: new Map() };
	}

	indexOf(name) {
		if (this.places.rows !== this.rows) {
			this.places = { rows: this.rows, byName: new Map(this.rows.map((row, index) => [row.name, index])) };
		}
		return this.places.byName.get(name) ?? -1;
	}

	// Loads the first page, with another filter if one is given
	reset(filter = this.filter) {
		this.filter = filter;
		this.era++;
		return this.run(() => this.first(PAGE));
	}

	more() {
		if (this.isLoading || this.next === null) return this.turn;
		return this.run(async () => {
			const page = await this.page(PAGE, this.next);
			return () => this.take(page, [...this.rows, ...page.rows]);
		});
	}

	// Adds what is new, and drops what was deleted elsewhere
	refresh() {
		return this.run(async () => {
			if (!this.rows.length) return this.first(PAGE);
			const page = await this.page(NEWEST);
			const added = page.rows.filter((row) => this.indexOf(row.name) < 0);
			const met = page.rows.findIndex((row) => this.indexOf(row.name) >= 0);
			if (met !== added.length || page.total !== this.total + added.length) {
				return this.first(Math.min(MOST, Math.max(PAGE, this.rows.length + added.length)));
			}
			return () => this.take({ ...page, next: this.next }, [...added, ...this.rows], added.length);
		});
	}

	// Takes a picture out of the list: it is deleted, or will be unless that is undone
	hide(name) {
		this.hidden.add(name);
		this.total--;
		this.rows = this.rows.filter((row) => row.name !== name);
		this.onChange(0);
	}

	async first(limit) {
		const page = await this.page(limit);
		return () => {
			const same = page.rows.findIndex((row) => this.indexOf(row.name) >= 0);
			const added = same < 0 ? 0 : Math.max(0, same - this.indexOf(page.rows[same].name));
			this.loaded = true;
			this.take(page, page.rows, added);
		};
	}

	take({ total, indexed, next }, rows, added = 0) {
		Object.assign(this, { total, indexed, next, rows });
		this.onChange(added);
	}

	async page(limit, before) {
		const filter = Object.entries(this.filter).filter(([, value]) => value);
		const query = new URLSearchParams([["limit", limit], ...(before ? [["before", before]] : []), ...filter]);
		const page = await this.api.call("GET", `/history?${query}`);
		const rows = page.images.filter((row) => !this.hidden.has(row.name));
		return { rows, total: page.total - this.hidden.size, next: page.next, indexed: page.indexed ?? 1 };
	}

	// One call after another: two answers that overlap would list a picture twice. `work` returns what to do with its answer,
	// unless the filter has changed meanwhile
	run(work) {
		const { era } = this;
		this.turn = this.turn.then(async () => {
			if (era !== this.era) return;
			this.isLoading = true;
			let done;
			try {
				done = await work();
				this.error = null;
			} catch (error) {
				done = () => {
					this.error = error;
					this.onChange(0);
				};
			}
			this.isLoading = false;
			if (era === this.era) done();
		});
		return this.turn;
	}
}

// The rows of the history, of which only those near what is in view are loaded

const PAGE = 100;
const LONGEST = 500; // that one call answers
const MOST = 3000; // rows that are kept

// All pictures, or those that a filter `{q, version, seed}` leaves; not those whose names are `hidden`: they may be deleted
export class HistoryRows {
	constructor(api, hidden, onChange) {
		Object.assign(this, { api, hidden, onChange, filter: {}, view: [0, PAGE], indexed: 1, isLoading: false, error: null });
		this.length = null; // as the server counts, the hidden ones too
		this.loaded = new Map(); // rows by place, which counts the hidden ones, too
		this.places = new Map(); // by name
		this.gaps = []; // the places of the hidden ones
		this.failed = -1; // a place that could not be loaded
		this.era = 0; // an answer to an earlier filter is dropped
		this.turn = Promise.resolve();
	}

	get total() {
		return this.length - this.gaps.length;
	}

	// The rows that are loaded
	get rows() {
		return [...this.loaded.values()].filter((row) => !this.hidden.has(row.name));
	}

	row(index) {
		return this.loaded.get(this.place(index));
	}

	indexOf(name) {
		const place = this.hidden.has(name) ? -1 : (this.places.get(name) ?? -1);
		return place - this.gaps.filter((gap) => gap < place).length;
	}

	place(index) {
		return this.gaps.reduce((place, gap) => (gap <= place ? place + 1 : place), index);
	}

	// Returns where a picture is, or was; NaN if the server does not say
	async find(name) {
		const index = this.indexOf(name);
		if (index >= 0) return index;
		const { offset = NaN, total } = await this.page({ limit: 1, before: name }).catch(() => ({}));
		if (total >= 0 && total !== this.length) await this.refresh();
		return Math.max(0, offset - 1);
	}

	// Begins again, with another filter if one is given
	reset(filter = this.filter) {
		Object.assign(this, { filter, view: [0, PAGE] });
		this.era++;
		return this.refresh();
	}

	// Learns what came and went
	refresh() {
		return this.run(() => this.renew(...this.view));
	}

	// Loads what is missing between two indexes
	need(first, end) {
		const missing = () => {
			for (let index = Math.max(0, first); index < Math.min(end, this.total); index++) if (!this.row(index)) return this.place(index);
			return -1;
		};
		if (missing() < 0) return null; // a key waits for no call
		if (missing() === this.failed) return this.turn;
		return this.run(async () => {
			const place = missing();
			if (place < 0) return () => {};
			this.failed = place;
			const page = await this.page({ limit: PAGE, offset: Math.max(0, place - PAGE / 2) });
			const take = () => page.total === this.length && this.take(page);
			if (page.total === this.length) return take;
			// Pictures came or went: what is in view is loaded anew first, or it would lose its place
			const renewed = await this.renew(...this.view);
			return () => {
				renewed();
				take();
			};
		});
	}

	// Loads anew what was between two indexes, wherever it is now
	async renew(first, end) {
		let index = first - 1;
		while (index < end && !this.row(index)) index++;
		const from = first > 0 && index < end ? { before: this.row(index).name } : { offset: Math.max(0, first) };
		const page = await this.page({ limit: Math.min(LONGEST, end - Math.max(0, first) + 1), ...from });
		return () => {
			this.loaded.clear();
			this.take(page);
		};
	}

	take({ images, offset, total, indexed = 1 }) {
		if (this.loaded.size > MOST) this.loaded = new Map([...this.loaded].filter(([place]) => Math.abs(place - offset) < LONGEST));
		images.forEach((row, index) => this.loaded.set(offset + index, row));
		Object.assign(this, { length: total, indexed, failed: -1 });
		this.changed();
	}

	// Takes out a picture that was deleted
	drop(name) {
		const gone = this.places.get(name) ?? Infinity;
		if (this.loaded.delete(gone)) this.length--;
		this.loaded = new Map([...this.loaded].map(([place, row]) => [place < gone ? place : place - 1, row]));
		this.changed();
	}

	changed() {
		this.places = new Map([...this.loaded].map(([place, row]) => [row.name, place]));
		this.gaps = [...this.hidden].flatMap((name) => this.places.get(name) ?? []).sort((one, other) => one - other);
		this.onChange();
	}

	page(place) {
		const parameters = Object.entries({ ...place, ...this.filter }).filter(([, value]) => value);
		return this.api.call("GET", `/history?${new URLSearchParams(parameters)}`);
	}

	// One call after another: two answers that overlap would contradict. `work` returns what to do with its answer
	run(work) {
		const { era } = this;
		this.turn = this.turn.then(async () => {
			if (era !== this.era) return;
			this.isLoading = true;
			const [done, error] = await work().then((done) => [done, null], (error) => [this.onChange, error]);
			this.isLoading = false;
			if (era !== this.era) return;
			this.error = error;
			done();
		}).catch(console.error);
		return this.turn;
	}
}

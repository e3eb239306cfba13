// The two thumbs of a picture in the history: one vote a visitor, a second press takes it back

import { el, icon, setText } from "./dom.js";
import { number, sentence, t } from "./i18n.js";
import { toast } from "./toast.js";

const SIDES = { up: 1, down: -1 };
// What was answered here, until the list of pictures knows of it
const answered = new Map();

export function createVotes({ api, store }) {
	let row = null;
	const parts = Object.entries(SIDES).map(([side, value]) => {
		const count = el("span");
		const button = el("button", { type: "button", class: `vote ${side}`, on: { click: () => vote(value) } }, icon("thumb"), count);
		return { side, value, count, button };
	});
	const element = el("div", { class: "votes" }, parts.map(({ button }) => button));
	const votes = () => {
		const [listed, own] = [row?.votes, answered.get(row?.name)];
		return own && own.mine !== listed?.mine ? own : (listed ?? { up: 0, down: 0, mine: 0 });
	};

	async function vote(value) {
		const one = row;
		try {
			const answer = await api.call("POST", `/history/${one.name}/vote`, { vote: votes().mine === value ? 0 : value });
			answered.set(one.name, (one.votes = answer.votes));
			store.set("rows", [...store.get("rows")]); // the other thumbs of this picture
		} catch (error) {
			toast(sentence(error), { error: true });
		}
		draw(row);
	}

	// Shows the votes on a picture; none on one that the history does not have
	function draw(shown) {
		row = shown;
		element.hidden = !row?.name;
		for (const { side, value, count, button } of parts) {
			const found = votes();
			setText(count, found[side] ? number(found[side]) : "");
			button.ariaPressed = found.mine === value;
			button.ariaLabel = button.title = t(`vote.${side}`, { count: found[side] });
		}
	}

	draw(null);
	return { element, draw };
}

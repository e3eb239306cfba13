// The row of sizes: proportions of the same area, flipped, twice and half

import { el, iconButton } from "./dom.js";
import { textButton } from "./parts.js";
import { NUMBERS } from "./settings.js";

const { least, most, step } = NUMBERS.width;
const RATIOS = [[1, 1], [4, 3], [3, 2], [16, 9]];
// The side of a square before the server has said the version's own
const ASSUMED_SIDE = 1024;

const rounded = (value) => Math.round(value / step) * step;

// Returns [width, height] in landscape: multiples of 16 with about the area of a square of this side
function sides(side, [wide, high]) {
	const scale = Math.min(1, most / (side * Math.sqrt(wide / high)));
	const width = side * Math.sqrt(wide / high) * scale;
	return [Math.max(least, rounded(width)), Math.max(least, rounded((width * high) / wide))];
}

export function sizeRow({ store, t, actions }, change) {
	let known = null;
	// The side, in pixels, if none is asked for: that of the picture that is changed, else of the version that serves or served last; or null
	actions.defaultSide = (name) => store.get("source")?.sides[name] ?? (known = store.get("status")?.serving?.default_size ?? known);

	const base = () => actions.defaultSide() ?? ASSUMED_SIDE;
	const usable = (side, name) => (side >= least && side <= most ? side : (actions.defaultSide(name) ?? base()));
	const current = () => ["width", "height"].map((name) => usable(store.get("settings")[name], name));
	const squareSide = () => {
		const { side, width, height } = store.get("settings");
		return side ?? (width === null && height === null && !store.get("source") ? base() : rounded(Math.sqrt(current()[0] * current()[1])));
	};
	const isPortrait = () => current()[1] > current()[0];
	// Returns the sides of a proportion, upright if those in the form are
	const turned = (side, ratio) => (isPortrait() ? sides(side, ratio).reverse() : sides(side, ratio));
	const matches = (ratio) => String(turned(squareSide(), ratio)) === String(current());
	const use = (side, [width, height]) => change({ width, height, side });

	const presets = RATIOS.map((ratio) => {
		const shape = el("span", { class: "shape" });
		const text = el("span", {});
		const click = () => use(squareSide(), turned(squareSide(), ratio));
		return { ratio, text, shape, button: el("button", { type: "button", class: "preset", on: { click } }, shape, text) };
	});
	const flip = iconButton("flip", t("size.flip"), () => use(squareSide(), current().reverse()));
	const scale = (factor, label, title) => textButton(label, () => {
		const side = squareSide() * factor;
		const ratio = RATIOS.find(matches);
		use(side, ratio ? turned(side, ratio) : current().map((one) => rounded(one * factor)));
	}, { class: "small", label: title });
	const half = scale(0.5, "÷2", t("size.half"));
	const twice = scale(2, "×2", t("size.twice"));

	function render() {
		for (const { ratio, button, text, shape } of presets) {
			const [wide, high] = isPortrait() ? [ratio[1], ratio[0]] : ratio;
			text.textContent = `${wide}:${high}`;
			shape.style.width = `${Math.sqrt(wide / high)}rem`;
			shape.style.height = `${Math.sqrt(high / wide)}rem`;
			button.ariaPressed = matches(ratio);
		}
		flip.disabled = current()[0] === current()[1];
		twice.disabled = Math.max(...current()) * 2 > most;
		half.disabled = Math.min(...current()) / 2 < least;
	}
	store.on("settings status source", () => store.get("settings") && render());
	return el("div", { class: "sizes", role: "group", "aria-label": t("size") },
		el("div", { class: "presets" }, ...presets.map(({ button }) => button)),
		el("div", { class: "size-buttons" }, flip, half, twice));
}

// The LoRAs of a picture: chips to choose them, a slider for each that is chosen

import { el, setText, show } from "./dom.js";
import { reasoned, t } from "./i18n.js";
import { extend, makeSlider, textButton } from "./parts.js";
import { MOST_LORAS, SCALE } from "./settings.js";

extend(`
loras.weight = Weight of {name} = {name} 的权重
.filter = Search the LoRAs = 搜索 LoRA
.most = A picture may have {count} LoRAs at most. = 每张图片最多使用 {count} 个 LoRA。
.gone = it is not on this server = 不在此服务器上
.problem = {name} cannot be used: {reason} = {name} 无法使用：{reason}
`, `
#loras{display:grid;gap:.5rem}
.lora-chips{display:flex;flex-wrap:wrap;gap:.25rem;max-height:8rem;overflow-y:auto}
.lora-chips>button{max-width:100%;border-radius:1.25rem;overflow:hidden;text-overflow:ellipsis}
.lora-chips>.bad{border-style:dashed;color:var(--danger)}
#loras label{overflow-wrap:anywhere}
`);

const FEW = 12; // more are searched

// Fills `host` with the LoRAs, and follows the settings and the server
export function makeChips({ store }, host) {
	let said = () => "";
	const sliders = new Map();
	const filter = el("input", { type: "search", "aria-label": t("loras.filter"), placeholder: t("loras.filter"), on: { input: draw } });
	const chips = el("div", { class: "lora-chips", role: "group", "aria-label": t("detail.loras") });
	const problem = el("p", { class: "error", "aria-live": "polite" });
	host.append(el("p", { class: "hint", text: t("detail.loras") }), filter, chips, problem);

	const chosen = () => store.get("settings").loras;
	const change = (loras) => store.set("settings", { ...store.get("settings"), loras });
	const known = () => store.get("status")?.loras;
	const isChosen = (name) => chosen().some((one) => one.name === name);

	// Why a LoRA cannot be used, or ""
	function problemOf(name) {
		const found = known()?.find((one) => one.name === name);
		if (!known() || (found && !found.problem)) return "";
		return t("loras.problem", { name, reason: found ? reasoned(found.code, found.problem) : t("loras.gone") });
	}

	function toggle(name) {
		said = () => "";
		if (isChosen(name)) return change(chosen().filter((one) => one.name !== name));
		said = chosen().length < MOST_LORAS ? () => problemOf(name) : () => t("loras.most", { count: MOST_LORAS });
		return said() ? draw() : change([...chosen(), { name, scale: 1 }]);
	}

	function draw() {
		const words = filter.value.trim().toLowerCase();
		const names = new Set([...(known() ?? []), ...chosen()].map(({ name }) => name));
		const isBad = (name) => Number(problemOf(name) !== "");
		const wanted = [...names].filter((name) => isChosen(name) || name.toLowerCase().includes(words)).sort((one, other) => isBad(one) - isBad(other));
		const there = new Map([...chips.children].map((chip) => [chip.textContent, chip]));
		const shown = wanted.map((name) => there.get(name) ?? textButton(name, () => toggle(name), { class: "small" }));
		// A chip that is pressed keeps the focus
		if (String(wanted) !== String([...there.keys()])) chips.replaceChildren(...shown);
		for (const chip of shown) {
			chip.ariaPressed = isChosen(chip.textContent);
			chip.title = problemOf(chip.textContent);
			chip.classList.toggle("bad", chip.title !== "");
		}
		show(filter, names.size > FEW);
		setText(problem, [...new Set([store.get("status")?.loraFault, said(), ...chosen().map(({ name }) => problemOf(name))])].filter(Boolean).join(" "));
		drawSliders();
	}

	function drawSliders() {
		for (const [name, { element }] of sliders) {
			if (!isChosen(name) && sliders.delete(name)) element.remove();
		}
		for (const { name, scale } of chosen()) {
			if (!sliders.has(name)) {
				const use = (value) => change(chosen().map((one) => (one.name === name ? { name, scale: value } : one)));
				const slider = makeSlider(`lora-${name}`, name, { ...SCALE, step: 0.05 }, use);
				slider.input.ariaLabel = t("loras.weight", { name });
				sliders.set(name, slider);
				host.append(slider.element);
			}
			sliders.get(name).set(scale);
		}
	}

	store.on("settings status", draw);
}

// The choice of two models that draw what the form says

import { open } from "./dialogs.js";
import { el } from "./dom.js";
import { t } from "./i18n.js";
import { extend, textButton } from "./parts.js";
import { requestOf } from "./settings.js";

extend(`
pair.first = First model = 第一个模型
.second = Second model = 第二个模型
.alias = {name} (now {version}) = {name}（现为 {version}）
.draw = Draw both = 同时生成
.prompt = Both draw the prompt and the seed of the form. = 两者都使用表单中的提示词和种子。
.few = Only one model is loaded. A share of 0 % holds another version ready: = 只加载了一个模型。0 % 的分流可让另一版本保持就绪：
`, `
.pair-choice{display:grid;gap:.75rem;max-width:26rem}
.over .left .pane-words{margin:0 50% 0 0}
`);

// Returns the models that can draw now: aliases and shares with what they serve, then the other versions that are loaded
function choices({ aliases = {}, shares = {}, engines = [] }) {
	const served = Object.entries({ ...aliases, ...shares })
		.map(([name, one]) => ({ name, version: one.serving ?? (name in shares ? one.target : null) }))
		.filter(({ version }) => engines.some((engine) => engine.version === version));
	const named = [...new Set(engines.map(({ version }) => version))].map((version) => ({ name: version, version }));
	return [...served, ...named];
}

export async function choosePair(ctx) {
	if (document.querySelector(".pair-choice")) return;
	const found = choices(await ctx.api.call("GET", "/status"));
	const select = (key) => {
		const id = `pair-${key}`;
		const input = el("select", { id }, found.map(({ name, version }) =>
			el("option", { value: name, text: name === version ? name : t("pair.alias", { name, version }) })));
		return { input, field: el("div", {}, el("label", { for: id, text: t(`pair.${key}`) }), input) };
	};
	const [first, second] = [select("first"), select("second")];
	// At first two that differ: what serves, and another version
	const other = found.findLast(({ version }) => version !== found[0]?.version);
	if (other) second.input.value = other.name;
	const isEnough = found.length > 1 && other;
	const draw = el("button", { value: "draw", class: "primary", text: t("pair.draw"), disabled: !isEnough });
	const update = () => (draw.disabled = !isEnough || first.input.value === second.input.value);
	for (const { input } of [first, second]) input.addEventListener("change", update);
	const dialog = el("dialog", { class: "question", "aria-label": t("pair.title") },
		el("form", { method: "dialog", class: "pair-choice" },
			el("h2", { text: t("pair.title") }), el("p", { class: "hint", text: t("pair.prompt") }),
			first.field, second.field,
			!isEnough && el("p", { class: "hint" }, t("pair.few"), " ", el("code", { text: "zwatch share v3 0" })),
			el("div", { class: "dialog-buttons" },
				textButton(t("cancel"), () => dialog.close(""), { class: "quiet" }), draw)));
	if ((await open(dialog)) !== "draw") return;
	const wanted = ctx.actions.wanted();
	if (wanted) await ctx.actions.compareModels(requestOf(wanted), [first.input.value, second.input.value]);
}

// The left column: what to draw. It shows the store's `settings` and changes them

import { byId, el, icon, iconButton, setText } from "./dom.js";
import { sentence } from "./i18n.js";
import { textButton } from "./parts.js";
import { sizeRow } from "./sizes.js";
import { sourceRows } from "./source.js";
import { NUMBERS, problems, promptHistory, randomSeed, requestOf } from "./settings.js";

// Builds the form and defines `actions.add` and `actions.generate`
export function initForm(ctx) {
	const { store, t, announce, actions } = ctx;
	const prompts = promptHistory();
	const errors = {};
	const inputs = {};
	// Whether the next press uses the seed in the field, though it is not locked: it was just chosen
	let isChosen = false;
	let isFull = false;

	const now = () => store.get("settings");
	const change = (changes) => store.set("settings", { ...now(), ...changes });

	function field(name, input, read, ...extra) {
		const id = `field-${name}`;
		input.id = id;
		inputs[name] = input;
		errors[name] = el("p", { class: "field-error", id: `${id}-error` });
		input.setAttribute("aria-describedby", errors[name].id);
		input.addEventListener("input", () => {
			change(read(input));
			check(name);
		});
		input.addEventListener("change", () => check(name, true));
		input.addEventListener("blur", () => render(now()));
		return el("div", {}, el("label", { for: id, text: t(`field.${name}`) }), el("div", { class: "with-buttons" }, input, ...extra), errors[name]);
	}

	const textField = (name, input) => field(name, input, () => ({ [name]: input.value }));

	function numberField(name) {
		const { least, most, step, optional } = NUMBERS[name];
		const input = el("input", { type: "number", min: least, max: most, step, inputmode: step === "any" ? "decimal" : "numeric" });
		return field(name, input, () => {
			const value = input.value !== "" ? Number(input.value) : optional && !input.validity.badInput ? null : NaN;
			return { [name]: value, ...(optional && { side: null }) };
		});
	}

	const prompt = el("textarea", { rows: "3", placeholder: t("prompt.placeholder"), maxlength: "10000" });
	const negative = el("textarea", { rows: "2", maxlength: "10000" });
	const seed = el("input", { type: "number", min: "0", step: "1", inputmode: "numeric", placeholder: t("seed.random") });
	const lock = iconButton("unlock", t("seed.lock"), () => change({ locked: !now().locked, seed: now().seed || randomSeed() }));
	const dice = iconButton("dice", t("seed.dice"), () => choose(randomSeed()));
	const next = textButton("+1", () => choose(plusOne(seed.value)), { class: "small", label: t("seed.next") });
	const format = el("select", {}, ["png", "jpeg", "webp"].map((name) => el("option", { value: name, text: name.toUpperCase() })));
	const generate = el("button", { type: "submit", class: "primary", id: "generate", "aria-labelledby": "generate-label", "aria-describedby": "generate-note generate-error" },
		el("span", { id: "generate-label", text: t("generate") }), el("span", { id: "generate-note" }));
	const failure = el("p", { class: "field-error", id: "generate-error", role: "alert" });

	const form = el("form", { novalidate: true, autocomplete: "off" },
		el("div", { class: "fields" },
			textField("prompt", prompt),
			sourceRows(ctx),
			sizeRow(ctx, change),
			el("div", { class: "pair" }, numberField("width"), numberField("height"), numberField("steps"), numberField("n")),
			field("seed", seed, () => {
				const text = seed.validity.badInput ? "?" : seed.value;
				return { seed: text, locked: text !== "" };
			}, lock, dice, next),
			el("details", { class: "advanced" }, el("summary", { text: t("advanced") }),
				textField("negative_prompt", negative), numberField("guidance_scale"),
				el("div", { class: "pair" }, textField("format", format), numberField("quality")))),
		el("div", { class: "generate" }, failure, generate));
	byId("form").append(form);

	function choose(value) {
		isChosen = true;
		change({ seed: value });
		check("seed", true);
	}

	// Shows what is wrong with a field; while somebody types, only an error that is shown is updated
	function check(name, isDone) {
		const found = problems(now())[name];
		if (!found || isDone || errors[name].textContent) complain(name, found ? t(...found) : "");
	}

	function complain(name, text) {
		setText(errors[name], text);
		inputs[name].ariaInvalid = text ? "true" : null;
		if (text && inputs[name].closest("details")) inputs[name].closest("details").open = true;
	}

	prompt.addEventListener("input", prompts.reset);
	initPromptKeys(prompt, prompts, (text) => change({ prompt: text }));

	form.addEventListener("submit", (event) => {
		event.preventDefault();
		actions.generate();
	});

	actions.add = async (request, of) => {
		const job = await actions.post(request, of);
		const { image, ...asked } = { ...request, source: job.source };
		actions.jobAdded({ step: 0, steps: request.steps * request.n, created: new Date().toISOString(), request: asked, ...job });
		return job;
	};

	// Returns the settings of the next picture; null if something is wrong, which then stands beside what it concerns
	actions.wanted = () => {
		const settings = now();
		const found = problems(settings);
		for (const name of Object.keys(errors)) complain(name, found[name] ? t(...found[name]) : "");
		setText(failure, "");
		const first = Object.keys(errors).find((name) => name in found);
		if (first) inputs[first].focus();
		const obstacle = first ? null : obstacleOf(store);
		if (obstacle) setText(failure, t(`error.code.${obstacle}`));
		if (first || obstacle) return null;
		const wanted = { ...settings, seed: settings.locked || isChosen ? settings.seed || randomSeed() : randomSeed() };
		isChosen = false;
		change({ seed: wanted.seed });
		prompts.add(wanted.prompt);
		return wanted;
	};

	// Adds a job as the form says
	actions.generate = async () => {
		const wanted = actions.wanted();
		if (!wanted) return;
		try {
			const job = await actions.add(requestOf(wanted));
			byId("stage").scrollIntoView({ block: "nearest" }); // on a phone
			announce(t("job.added", { count: job.position ?? 0 }));
		} catch (error) {
			if (error.param in errors) {
				complain(error.param, error.message);
				inputs[error.param].focus();
			} else setText(failure, sentence(error));
			isFull = error.code === "queue_full";
		}
	};

	function render(settings) {
		for (const [name, input] of Object.entries(inputs)) {
			const value = settings[name] ?? actions.defaultSide(name);
			if (Number.isNaN(value) || value === "?") continue; // what is typed is not a number: leave it
			if (name in NUMBERS && document.activeElement === input && (settings[name] === null || Number(input.value) === value)) continue;
			const text = value === null ? "" : String(value);
			if (input.value === text) continue;
			// A prompt that other settings replace is found again with arrow up
			if (input === prompt) prompts.add(prompt.value);
			input.value = text;
			check(name);
		}
		grow(prompt);
		grow(negative);
		// An icon that is replaced under the pointer loses the click
		if (lock.ariaPressed !== String(settings.locked)) lock.replaceChildren(icon(settings.locked ? "lock" : "unlock"));
		lock.ariaPressed = settings.locked;
		seed.classList.toggle("free", !settings.locked);
	}
	store.on("settings", render);

	function renderGenerate() {
		const obstacle = obstacleOf(store);
		setText(byId("generate-note"), obstacle ? t(`obstacle.${obstacle}`) : "");
		const { waiting = 0, limit = 0 } = store.get("status")?.queue ?? {};
		// What the server said of another press stays
		if (obstacle === null && (generate.classList.contains("blocked") || (isFull && waiting < limit))) setText(failure, "");
		generate.classList.toggle("blocked", obstacle !== null);
		render(now());
	}
	store.on("connection status source", renderGenerate);
}

// Returns the code of why no picture can be made now; null if one can
function obstacleOf(store) {
	const status = store.get("status");
	if (store.get("connection") === "lost") return "unreachable";
	if (status === null || status.serving) return null;
	const { unloaded, attempt, fault } = status.aliases?.current ?? {};
	return unloaded || fault || attempt?.state === "REJECTED" ? "model_not_loaded" : null;
}

function plusOne(text) {
	return /^\d+$/.test(text) ? String(BigInt(text) + 1n) : randomSeed();
}

function grow(area) {
	if (CSS.supports("field-sizing", "content")) return;
	area.style.height = "auto";
	area.style.height = `${area.scrollHeight + 2}px`;
}

// Arrow up and down walk through the prompts used before, from the first and the last line
function initPromptKeys(prompt, prompts, use) {
	const walk = (by) => {
		const text = prompts.walk(by, prompt.value);
		if (text === null) return;
		prompt.value = text;
		use(text);
	};
	prompt.addEventListener("keydown", (event) => {
		const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
		const { selectionStart: before, value } = prompt;
		// The arrows of an input method choose among its words
		if (!by || event.isComposing || event.ctrlKey || event.altKey || event.metaKey || event.shiftKey || before !== prompt.selectionEnd) return;
		if (prompts.isWalking() && before === value.length) {
			event.preventDefault();
			return walk(by);
		}
		const hasMore = (by < 0 ? value.slice(0, before) : value.slice(before)).includes("\n");
		// Only the browser knows where lines wrap: a caret that stays, or goes to the end, is in the last
		if (!hasMore) requestAnimationFrame(() => [before, by < 0 ? 0 : value.length].includes(prompt.selectionStart) && walk(by));
	});
}

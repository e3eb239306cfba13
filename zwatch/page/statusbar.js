// The bottom line: the model that draws, the queue, what a deploy is doing, and whether the server answers

import { el, setText, show } from "./dom.js";
import { has, number, percent, time } from "./i18n.js";

// Digits of a digest that are shown; the whole one is the tooltip
const SHOWN_DIGEST = 12;

export function initStatusBar({ store, t }) {
	const model = el("span", { class: "status-model" });
	const fault = el("span", { class: "status-fault" });
	// Figures that change all the time are not spoken; the outcome is
	const deploy = el("span", { class: "status-deploy", "aria-live": "off" });
	const queue = el("span", { class: "status-queue", "aria-live": "off" });
	document.querySelector("footer").append(deploy, fault, queue, model);

	function render() {
		const status = store.get("status");
		const isLost = store.get("connection") === "lost";
		setText(fault, isLost ? t("connection.lost") : status ? faultText(status, t) : t("connection.connecting"));
		show(fault, fault.textContent !== "");
		if (status === null) return;
		setText(model, modelText(status, t));
		model.title = status.serving?.digest ?? "";
		setText(deploy, deployText(status, t));
		const { running = 0, waiting = 0 } = status.queue ?? {};
		show(queue, !isLost); // it would be an old one
		setText(queue, running + waiting ? t("queue.status", { running: number(running), waiting: number(waiting) }) : t("queue.idle"));
	}

	store.on("status", render);
	store.on("connection", render);
}

function modelText({ serving, aliases }, t) {
	if (serving) {
		const digest = serving.digest?.slice(0, SHOWN_DIGEST);
		return [t("model", { name: serving.version }), digest, t("model.since", { time: time(serving.since) })].filter(Boolean).join(" · ");
	}
	return t("model", { name: t(aliases?.current?.unloaded ? "model.unloaded" : "model.none") });
}

function deployText({ aliases = {} }, t) {
	return Object.values(aliases)
		.map(({ attempt }) => attempt)
		.filter((attempt) => ["LOADING", "WARMING"].includes(attempt?.state))
		.map(({ version, state, progress }) => {
			// Before its bytes are read the libraries are imported, after them it is built
			const doing = state === "WARMING" ? "warming" : progress > 0 && progress < 1 ? "verifying" : "loading";
			return t(`deploy.${doing}`, { version, percent: percent(progress) });
		})
		.join(" · ");
}

// Returns what is wrong: a version that was rejected and is still asked for, a link, the history; or ""
function faultText({ aliases = {}, history }, t) {
	const texts = [];
	for (const [alias, { attempt, target, fault }] of Object.entries(aliases)) {
		if (attempt?.state === "REJECTED" && (target ?? attempt.version) === attempt.version) {
			const code = `rejected.${attempt.code}`;
			texts.push(t("deploy.rejected", { version: attempt.version, reason: (has(code) ? t(code) : "") + attempt.reason }));
		}
		if (fault) texts.push(t("deploy.fault", { alias, message: fault.message.replace(`${alias}: `, "") }));
	}
	if (history?.fault) texts.push(t("history.fault", { message: history.fault }));
	return texts.join(" · ");
}

// The bottom line: the model, the queue, what a deploy is doing, whether the server answers

import { el, setText, show } from "./dom.js";
import { number, percent, reasoned, time } from "./i18n.js";
import { textButton } from "./parts.js";

// Digits of a digest that are shown; the whole one is the tooltip
const SHOWN_DIGEST = 12;

export function initStatusBar({ store, t, api }) {
	const model = el("span", { class: "status-model" });
	const fault = el("span", { class: "status-fault" });
	// Figures that change all the time are not spoken; the outcome is
	const deploy = el("span", { class: "status-deploy", "aria-live": "off" });
	const queue = el("span", { "aria-live": "off" });
	// Any call asks for the token again
	const unlock = textButton(t("token.title"), () => api.call("GET", "/status").catch(() => {}), { class: "small" });
	document.querySelector("footer").append(deploy, fault, unlock, queue, model);

	function render() {
		const status = store.get("status");
		const connection = store.get("connection");
		const isLocked = connection === "locked";
		show(unlock, isLocked);
		setText(fault, connection === "lost" ? t("connection.lost") : isLocked ? t("token.text") : status ? faultText(status, t) : t("connection.connecting"));
		if (status === null) return;
		setText(model, modelText(status, t));
		model.title = status.serving?.digest ?? "";
		setText(deploy, deployText(status, t));
		const { running = 0, waiting = 0 } = status.queue ?? {};
		show(queue, connection !== "lost"); // it would be an old one
		setText(queue, running + waiting ? t("queue.status", { running: number(running), waiting: number(waiting) }) : t("queue.idle"));
	}

	store.on("status connection", render);
}

function modelText({ serving, aliases }, t) {
	if (serving) {
		const digest = serving.digest?.slice(0, SHOWN_DIGEST);
		return [t("model", { name: serving.version }), digest, t("model.since", { time: time(serving.since) })].filter(Boolean).join(" · ");
	}
	return t("model", { name: t(aliases?.current?.unloaded ? "model.unloaded" : "model.none") });
}

function deployText({ aliases, shares }, t) {
	return Object.values({ ...aliases, ...shares })
		.flatMap(({ attempt }) => (["LOADING", "WARMING"].includes(attempt?.state) ? attempt : []))
		.map(({ version, state, progress }) => {
			// Before its bytes are read the libraries are imported, after them it is built
			const doing = state === "WARMING" ? "warming" : progress > 0 && progress < 1 ? "verifying" : "loading";
			return t(`deploy.${doing}`, { version, percent: percent(progress) });
		})
		.join(" · ");
}

// Returns what is wrong with a version that is asked for, a link, the history; or ""
function faultText({ aliases, shares, history }, t) {
	const texts = [];
	const said = new Set(); // a share's fault is its alias's, too
	for (const [alias, { attempt, target, fault }] of Object.entries({ ...aliases, ...shares })) {
		if (attempt?.state === "REJECTED" && (target ?? attempt.version) === attempt.version) {
			texts.push(t("deploy.rejected", { version: attempt.version, reason: reasoned(attempt.code, attempt.reason) }));
		}
		if (fault && !said.has(fault.message)) texts.push(t("deploy.fault", { alias, message: reasoned(fault.code, fault.message.replace(`${alias}: `, "")) }));
		said.add(fault?.message);
	}
	if (history?.fault) texts.push(t("history.fault", { message: history.fault }));
	return texts.join(" · ");
}

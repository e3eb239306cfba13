// One version in the panel

import { el, iconButton, setText, show } from "./dom.js";
import { bytes, dateTime, duration, number, percent, reasoned, t, time } from "./i18n.js";
import { textButton } from "./parts.js";
import { copyAndSay } from "./toast.js";

export function makeRow(name, deploy) {
	const parts = {
		chips: el("span", { class: "chips" }),
		deploy: textButton(t("versions.deploy"), deploy),
		digest: el("code"),
		facts: el("p", { class: "count" }),
		source: el("p", { class: "count" }),
		problem: el("p", { class: "error" }),
		attempt: el("p", { class: "version-attempt" }),
		progress: el("progress", { max: 1, "aria-label": t("progress") }),
		command: el("code", { class: "command" }),
	};
	const cell = (name, ...content) => el("div", { role: "cell", class: name }, content);
	const element = el("div", { role: "row", class: "version" },
		cell("version-name", el("strong", { text: name }), parts.chips), cell("", parts.deploy),
		cell("version-about", parts.digest, parts.facts, parts.source, parts.problem, parts.attempt, parts.progress),
		cell("version-command", parts.command, iconButton("copy", t("versions.copyCommand", { version: name }), () => copyAndSay(parts.command.textContent))));
	return { element, parts };
}

// Brings a row up to date; `state` is that of the alias
export function drawRow(row, { version, alias, links, state, attempt }) {
	const { element, parts } = row;
	// For another link, or before the listed attempts
	const { rejected } = version;
	attempt ??= rejected && { ...rejected, state: "REJECTED", started: rejected.when };
	const serves = state.serving === version.name;
	// Few of hundreds change
	const shown = JSON.stringify([version, alias, links, serves && state, attempt]);
	if (row.shown === shown) return;
	row.shown = shown;
	const runs = attempt?.state === "LOADING" || attempt?.state === "WARMING";
	element.classList.toggle("serves", serves);
	parts.chips.replaceChildren(...chips(version, serves, links.filter((link) => !serves || link !== alias)).map(([kind, text]) => el("span", { class: `chip ${kind}`, text })));
	parts.deploy.disabled = links.includes(alias) && (serves || runs);
	setText(parts.digest, version.digest);
	setText(parts.facts, facts(version, serves && state).join(" · "));
	setText(parts.source, sourceText(version.provenance ?? {}));
	setText(parts.problem, version.problem === attempt?.reason ? "" : version.problem);
	setText(parts.attempt, attempt ? attemptText(attempt) : "");
	parts.attempt.classList.toggle("error", attempt?.state === "REJECTED");
	parts.progress.value = runs ? attempt.progress : 0;
	show(parts.progress, runs);
	setText(parts.command, `ln -sfn ${version.name} ${alias}`);
}

function chips(version, serves, links) {
	return [
		serves && ["serving", t("versions.isServing")],
		!serves && version.resident && ["resident", t("versions.isResident")],
		["", t(version.sealed ? "versions.isSealed" : "versions.isUnsealed")],
		...links.map((link) => ["", `${link} → ${version.name}`]),
	].filter(Boolean);
}

function facts(version, { since, images } = {}) {
	return [
		since && t("model.since", { time: time(since) }),
		images > 0 && t("search.count", { count: images, n: number(images) }),
		version.bytes > 0 && bytes(version.bytes),
		version.sealed_at && t("versions.sealedAt", { time: dateTime(version.sealed_at) }),
	].filter(Boolean);
}

function sourceText({ source, base, loras = [], conversions = [], quantization, licence, created, note }) {
	return [
		source && t("versions.from", { source: [source.repository ?? source.name, source.revision?.slice(0, 12)].filter(Boolean).join(" ") }),
		base && `+ ${base.version}`,
		...loras.map(({ name, scale }) => `${name} × ${number(scale)}`),
		...conversions.map(({ component, from, to }) => `${component}: ${from} → ${to}`),
		quantization,
		licence && t("versions.licence", { licence }),
		created && t("versions.made", { time: dateTime(created) }),
		note,
	].filter(Boolean).join(" · ");
}

function attemptText({ state, started, seconds, progress, code, reason }) {
	const took = seconds < 10 ? t("time.seconds", { seconds: number(seconds, { maximumFractionDigits: 1 }) }) : duration(seconds);
	return t(`versions.attempt.${state}`, { time: time(started), duration: took, reason: reasoned(code, reason ?? ""), percent: percent(progress) });
}

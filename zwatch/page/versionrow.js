// One version in the panel: its name and state, digest, last attempt with its reason, the command that deploys it.

import { el, iconButton, setText, show } from "./dom.js";
import { bytes, dateTime, duration, number, percent, t, time } from "./i18n.js";
import { copyText, shortDigest } from "./picture.js";
import { toast } from "./toast.js";

/** Makes the row of a version; `deploy(name)` is called by its button. */
export function makeRow(name, deploy) {
  const parts = {
    chips: el("span", { class: "chips" }),
    deploy: el("button", { type: "button", text: t("versions.deploy"), on: { click: () => deploy(name) } }),
    digest: el("code", { class: "digest" }),
    facts: el("span", { class: "version-facts" }),
    problem: el("p", { class: "error", hidden: true }),
    attempt: el("p", { class: "version-attempt", hidden: true }),
    progress: el("progress", { max: 1, hidden: true, "aria-label": t("versions.progress", { version: name }) }),
    command: el("code", { class: "command" }),
  };
  const copyDigest = iconButton("copy", t("versions.copyDigest", { version: name }), () => copy(parts.digest.title));
  const copyCommand = iconButton("copy", t("versions.copyCommand", { version: name }), () => copy(parts.command.textContent));
  const element = el("div", { role: "row", class: "version" },
    el("div", { role: "cell", class: "version-name" }, el("strong", { text: name }), parts.chips),
    el("div", { role: "cell", class: "version-deploy" }, parts.deploy),
    el("div", { role: "cell", class: "version-about" },
      el("div", { class: "version-digest" }, parts.digest, copyDigest), parts.facts,
      parts.problem, parts.attempt, parts.progress),
    el("div", { role: "cell", class: "version-command" }, parts.command, copyCommand));
  return { element, parts, copyDigest };
}

/** Brings a row up to date with {version, alias, target, serving, serves, attempt, busy}. */
export function drawRow({ element, parts, copyDigest }, { version, alias, target, serving, serves, attempt, busy }) {
  element.classList.toggle("serves", serves);
  parts.chips.replaceChildren(...chips(version, alias, serves).map(([kind, text]) => el("span", { class: `chip ${kind}`, text })));
  parts.deploy.disabled = busy !== null || (serves && target === version.name);
  setText(parts.digest, shortDigest(version.digest));
  parts.digest.title = version.digest ?? "";
  show(parts.digest.parentElement, Boolean(version.digest));
  show(copyDigest, Boolean(version.digest));
  setText(parts.facts, facts(version, serving).join(" · "));
  setText(parts.problem, version.problem ?? "");
  show(parts.problem, Boolean(version.problem));
  drawAttempt(parts, attempt);
  setText(parts.command, `ln -sfn ${version.name} ${alias}`);
}

function chips(version, alias, serves) {
  const others = version.aliases.filter((name) => name !== alias).map((name) => ["", name]);
  return [
    serves && ["serving", t("versions.isServing")],
    !serves && version.resident && ["resident", t("versions.isResident")],
    version.sealed ? ["", t("versions.isSealed")] : ["unsealed", t("versions.isUnsealed")],
    ...others,
  ].filter(Boolean);
}

function facts(version, serving) {
  const count = serving?.images;
  return [
    serving && t("versions.since", { time: time(serving.since) }),
    serving && count !== undefined && t("versions.pictures", { count, n: number(count) }),
    version.bytes > 0 && bytes(version.bytes),
    version.sealed_at && t("versions.sealedAt", { time: dateTime(version.sealed_at) }),
  ].filter(Boolean);
}

function drawAttempt(parts, attempt) {
  const runs = attempt?.state === "LOADING" || attempt?.state === "WARMING";
  show(parts.progress, runs);
  if (runs) parts.progress.value = attempt.progress;
  setText(parts.attempt, attempt ? attemptText(attempt) : "");
  show(parts.attempt, attempt !== null);
  parts.attempt.classList.toggle("error", attempt?.state === "REJECTED");
}

function attemptText({ state, started, seconds, progress, reason }) {
  const values = { time: time(started), duration: seconds < 10 ? t("versions.seconds", { seconds: number(seconds, { maximumFractionDigits: 1 }) }) : duration(seconds), reason: reason ?? "", percent: percent(progress) };
  return t(`versions.attempt.${state}`, values);
}

async function copy(text) {
  const copied = await copyText(text);
  toast(t(copied ? "copy.done" : "copy.failed"), { error: !copied });
}

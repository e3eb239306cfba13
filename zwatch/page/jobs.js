// The list "Queue": this browser's jobs that wait, run or failed

import { byId, el, iconButton, setText, show } from "./dom.js";
import { duration, number, percent, sentence } from "./i18n.js";
import { textButton } from "./parts.js";
import { read, write } from "./settings.js";
import { isUnfinished, merged } from "./stream.js";
import { toast } from "./toast.js";

// From so many pictures in a row on, their end is worth a notification
const LONG_LIST = 3;
const BELL = "zwatch.notify";
const DISMISSED = "zwatch.dismissed";

export function initJobs(ctx) {
	const { store, t, announce, api, actions } = ctx;
	const dismissed = new Set(read(DISMISSED));
	const items = new Map();
	const title = el("h2", { text: t("queue") });
	const bell = iconButton("bell", t("notify"), toggleBell);
	const cancelAll = textButton(t("cancel.all"), async () => {
		// The last first, so that none of the others begins meanwhile
		for (const job of active().reverse()) await actions.cancel(job);
	}, { class: "small quiet" });
	const list = el("ul", { class: "jobs", "aria-label": t("queue") });
	const empty = el("p", { class: "hint", text: t("queue.empty") });
	byId("queue").append(el("div", { class: "section-head" }, title, el("div", {}, cancelAll, bell)), list, empty);

	const active = () => store.get("jobs").filter(isUnfinished);
	const visible = () => store.get("jobs").filter((job) => (isUnfinished(job) || job.state === "failed") && !dismissed.has(job.id));

	actions.jobAdded = (job) => {
		// The event stream may have been faster than the answer
		if (!store.get("jobs").some((one) => one.id === job.id)) store.set("jobs", [...store.get("jobs"), job]);
		actions.followJob(job.id, { isAdded: true });
	};

	const orSay = (work) => (job) => work(job).catch((error) => toast(sentence(error), { error: true }));

	actions.cancel = orSay(async (job) => {
		const gone = await api.call("DELETE", `/jobs/${job.id}`);
		store.set("jobs", merged(store.get("jobs"), gone));
		announce(t("job.cancelled"));
	});

	actions.again = orSay(async (job) => {
		// Sides that were left to the version are left out again; `model` stays. Whether there was a mask is no field of a request
		await actions.add(Object.fromEntries(Object.entries(job.request).filter(([name, value]) => value !== null && name !== "mask")), job);
		dismiss(job);
	});

	actions.progressText = (job) => {
		const count = job.request.n;
		const steps = job.steps / count;
		const made = Math.min(count - 1, job.images?.length ?? 0);
		const step = Math.max(0, job.step - made * steps);
		if (job.state === "queued") return job.position ? t("job.before", { count: job.position }) : t("job.next");
		if (job.state !== "running") return "";
		if (store.get("connection") === "lost") return t("obstacle.unreachable");
		const parts = [];
		if (count > 1) parts.push(t("job.picture", { number: made + 1, count }));
		parts.push(job.step === 0 ? t("job.prompt") : step >= steps ? t("job.decoding") : t("job.step", { step, steps }));
		// One step says little of the next
		if (job.step > 1 && job.remaining > 0) parts.push(t("job.left", { time: duration(job.remaining) }));
		return parts.join(" · ");
	};

	// A reload does not bring it back
	function dismiss(job) {
		dismissed.add(job.id);
		write(DISMISSED, [...dismissed].slice(-99));
		render();
	}

	function makeItem(job) {
		const text = job.request.prompt;
		const named = (name) => ({ "aria-label": t(name, { prompt: text.slice(0, 80) }) });
		const prompt = textButton(text, () => actions.followJob(job.id), { class: "job-prompt", title: text });
		const state = el("span", { class: "job-state" });
		const bar = el("progress", { max: 1, value: 0, "aria-hidden": "true" });
		const error = el("p", { class: "field-error" });
		const cancel = iconButton("close", t("cancel"), () => actions.cancel(job), named("cancel.job"));
		const retry = textButton(t("retry"), () => actions.again(find(job.id)), { class: "small", ...named("retry.job") });
		const drop = iconButton("close", t("dismiss"), () => {
			if (store.get("shown")?.job === job.id) store.set("shown", null);
			dismiss(job);
		}, named("dismiss.job"));
		const item = el("li", { class: "job" }, el("div", { class: "job-line" }, prompt, state, retry, cancel, drop), bar, error);
		return { item, state, bar, error, cancel, retry, drop };
	}

	const find = (id) => store.get("jobs").find((job) => job.id === id);

	function updateItem(parts, job) {
		const isFailed = job.state === "failed";
		const isRunning = job.state === "running";
		setText(parts.state, !isRunning ? actions.progressText(job) : job.step ? percent(job.step / job.steps) : t("job.prompt"));
		parts.bar.value = job.step / job.steps;
		show(parts.bar, isRunning);
		show(parts.cancel, !isFailed);
		show(parts.drop, isFailed);
		show(parts.retry, isFailed);
		setText(parts.error, isFailed ? sentence(job.error) : "");
		parts.item.classList.toggle("running", isRunning);
	}

	function render() {
		const jobs = visible();
		const ids = new Set(jobs.map((job) => job.id));
		for (const [id, parts] of items) {
			if (ids.has(id)) continue;
			const hadFocus = parts.item.contains(document.activeElement);
			const neighbour = parts.item.nextElementSibling ?? parts.item.previousElementSibling;
			parts.item.remove();
			items.delete(id);
			// The focus goes on to the next job, not to the top of the page
			if (hadFocus) (neighbour?.querySelector("button:not([hidden]).icon-button") ?? byId("generate")).focus();
		}
		jobs.forEach((job, place) => {
			if (!items.has(job.id)) items.set(job.id, makeItem(job));
			const parts = items.get(job.id);
			updateItem(parts, job);
			if (list.children[place] !== parts.item) list.insertBefore(parts.item, list.children[place] ?? null);
		});
		const count = active().length;
		setText(title, count ? t("queue.count", { count: number(count) }) : t("queue"));
		document.title = count ? `(${count}) zwatch` : "zwatch";
		show(empty, jobs.length === 0);
		show(cancelAll, count > 1);
	}

	// The jobs since the list was last empty
	let run = new Set();
	function noteEnd(jobs) {
		for (const job of jobs) if (isUnfinished(job)) run.add(job.id);
		if (jobs.some(isUnfinished)) return;
		const ended = jobs.filter(({ id }) => run.has(id));
		run = new Set();
		const failed = ended.filter(({ state }) => state === "failed").length;
		const count = ended.reduce((sum, { images }) => sum + (images?.length ?? 0), 0);
		if (count + failed < LONG_LIST) return;
		const text = t("notify.done", { count }) + (failed ? t("notify.failed", { failed }) : "");
		announce(text);
		if (!isBellOn()) return;
		try {
			new Notification("zwatch", { body: text, icon: "/page/icon.svg", tag: "zwatch" }).onclick = () => focus();
		} catch {
			// Android's browsers allow them to service workers only
		}
	}

	const isBellOn = () => window.Notification?.permission === "granted" && read(BELL) !== "off";

	async function toggleBell() {
		const wasOn = isBellOn();
		if (!wasOn && Notification.permission === "default") await Notification.requestPermission();
		if (Notification.permission === "granted") write(BELL, wasOn ? "off" : "on");
		toast(t(isBellOn() ? "notify.on" : "notify.off"));
		renderBell();
	}

	function renderBell() {
		show(bell, "Notification" in window);
		bell.ariaPressed = isBellOn();
	}

	renderBell();
	store.on("jobs", (jobs) => {
		render();
		noteEnd(jobs);
	});
}

// The right side: the picture, the preview that forms, the progress, Cancel

import { byId, el, setText, show } from "./dom.js";
import { duration } from "./i18n.js";
import { textButton } from "./parts.js";
import { rowOfJob, seedText, settingsOf } from "./picture.js";
import { isUnfinished } from "./stream.js";

export function initStage(ctx) {
	const { store, t, announce, actions } = ctx;
	const section = byId("stage");
	// Whether the stage goes on to the next job by itself: not while somebody looks at a picture of the history
	let isFollowing = true;
	const ended = new Set();

	const image = el("img", { id: "result", alt: "", hidden: true });
	const message = el("div", { class: "stage-message" });
	const canvas = el("div", { class: "canvas" }, image, message);
	const progress = el("progress", { max: 1, value: 0, "aria-label": t("progress") });
	const progressText = el("span", { class: "progress-text" });
	const cancel = textButton(t("cancel"), () => actions.cancelShown());
	const progressRow = el("div", { class: "progress-row" }, progress, progressText, cancel);
	const title = el("p", { class: "caption-prompt" });
	const details = el("p", { class: "caption-details" });
	const use = (name, options) => textButton(t(`use.${name}`), () => actions.use(settingsOf(pictureNow()), options), { class: "small" });
	const buttons = el("div", { id: "stage-actions" }, use("all", {}), use("seed", { seedOnly: true }));
	const caption = el("div", { class: "caption" }, el("div", { class: "caption-text" }, title, details), buttons);
	section.append(canvas, progressRow, caption);

	const jobs = () => store.get("jobs");
	const find = (id) => jobs().find((job) => job.id === id);
	const shownJob = () => find(store.get("shown")?.job);

	// The job whose progress is shown: the one in the stage, else the one that runs or waits first
	const activeJob = () => {
		const job = shownJob();
		return job && isUnfinished(job) ? job : (jobs().find((one) => one.state === "running") ?? jobs().find(isUnfinished));
	};

	function pictureOf(job) {
		const made = job.images?.at(-1);
		if (!made?.url) return null;
		return kept({ ...rowOfJob(job, made), ...sizeOf(job) });
	}

	const kept = (picture) => store.get("rows").find((row) => row.name !== null && row.name === picture.name) ?? picture;

	const sizeOf = ({ request }) => ({
		width: request?.width ?? actions.defaultSide() ?? undefined, height: request?.height ?? actions.defaultSide() ?? undefined,
	});

	const pictureNow = () => {
		const shown = store.get("shown");
		if (shown?.picture) return kept(shown.picture);
		return shownJob() ? pictureOf(shownJob()) : null;
	};

	actions.show = (row) => {
		isFollowing = false;
		store.set("shown", { picture: row });
	};

	// Shows a job and the ones after it; one that was only added waits until the one in the stage is done
	actions.followJob = (id, { isAdded = false } = {}) => {
		const isBusy = isAdded && isFollowing && shownJob() && isUnfinished(shownJob());
		isFollowing = true;
		if (!isBusy) store.set("shown", { job: id });
	};

	actions.cancelShown = () => {
		const job = activeJob();
		if (job) actions.cancel(job);
	};

	function follow() {
		for (const job of jobs()) {
			if (isUnfinished(job) || ended.has(job.id)) continue;
			ended.add(job.id);
			if (store.get("shown")?.job === job.id) tell(job);
		}
		const shown = shownJob();
		if (store.get("shown")?.job !== undefined && shown === undefined) store.set("shown", null);
		if (!isFollowing || (shown && isUnfinished(shown))) return;
		const next = jobs().find((job) => job.state === "running") ?? jobs().find(isUnfinished);
		if (next) store.set("shown", { job: next.id });
		else if (shown && shown.state !== "failed") store.set("shown", pictureOf(shown) && { picture: pictureOf(shown) });
	}

	function tell(job) {
		if (job.state === "done") announce(t("job.done", { version: job.version, seed: job.images?.at(-1)?.seed ?? "" }));
		else if (job.state === "failed") announce(actions.sentence(job.error));
	}

	function render() {
		const shown = store.get("shown");
		if (shown === null && store.get("rows").length) {
			store.set("shown", { picture: store.get("rows")[0] });
			return;
		}
		const job = shownJob();
		const picture = pictureNow();
		renderImage(job, picture);
		renderMessage(job, picture);
		renderCaption(job, picture);
		renderProgress();
	}

	function renderImage(job, picture) {
		const isForming = job && isUnfinished(job);
		const preview = isForming ? job.preview : null;
		const source = preview ?? picture?.url ?? null;
		section.classList.toggle("forming", Boolean(isForming));
		section.classList.toggle("preview", preview !== null && preview !== undefined);
		if (source === null) {
			// The last picture stays, dimmed, until the first preview of the next one: nothing flashes or moves
			if (!isForming) show(image, false);
			return;
		}
		const size = preview ? sizeOf(job) : picture;
		if (size?.width && size?.height) canvas.style.setProperty("--ratio", String(size.width / size.height));
		if (image.getAttribute("src") !== source) image.src = source;
		image.alt = preview ? t("result.forming") : t("result", { prompt: picture?.prompt ?? "" });
		show(image, true);
	}

	function renderMessage(job, picture) {
		let text = "";
		if (job?.state === "failed") text = actions.sentence(job.error);
		else if (!job && !picture) text = t(store.get("status") === null ? "connection.connecting" : "stage.empty");
		setText(message, text);
		show(message, text !== "");
		message.classList.toggle("error", job?.state === "failed");
	}

	function renderCaption(job, picture) {
		const isForming = job && isUnfinished(job);
		const about = isForming ? { ...job.request, ...sizeOf(job), version: job.version } : picture;
		setText(title, about?.prompt ?? "");
		title.title = title.textContent;
		const { version, width, height, steps } = about ?? {};
		const seed = about && seedText(about);
		setText(details, [
			version, seed && t("caption.seed", { seed }), width && height && `${width} × ${height}`, steps && t("caption.steps", { count: steps }),
		].filter(Boolean).join(" · "));
		buttons.classList.toggle("unseen", !picture || Boolean(isForming));
	}

	function renderProgress() {
		const job = activeJob();
		progressRow.classList.toggle("unseen", !job);
		if (!job) return;
		progress.value = job.steps ? job.step / job.steps : 0;
		const left = job.state === "running" && typeof job.remaining === "number" ? t("job.left", { time: duration(job.remaining) }) : "";
		setText(progressText, [actions.progressText(job), left].filter(Boolean).join(" · "));
	}

	store.on("jobs", () => {
		follow();
		render();
	});
	store.on("shown", render);
	store.on("rows", render);
	store.on("status", render);
}

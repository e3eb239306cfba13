// The right side: the picture, the preview that forms, the progress, Cancel

import { byId, el, setText, show } from "./dom.js";
import { sentence } from "./i18n.js";
import { textButton } from "./parts.js";
import { seedText, shownRow } from "./picture.js";
import { isUnfinished } from "./stream.js";

export function initStage(ctx) {
	const { store, t, announce, actions } = ctx;
	const section = byId("stage");
	// Whether the stage goes on to the next job: not while somebody looks at the history
	let isFollowing = true;
	const ended = new Set();

	const image = el("img", { id: "result", alt: "", hidden: true });
	// At the next change it is asked for again
	image.addEventListener("error", () => image.removeAttribute("src"));
	const message = el("div", { class: "stage-message" });
	const canvas = el("div", { class: "canvas" }, image, message);
	const progress = el("progress", { max: 1, value: 0, "aria-label": t("progress") });
	const progressText = el("span", { class: "progress-text" });
	const cancel = textButton(t("cancel"), () => actions.cancelShown());
	const progressRow = el("div", { class: "progress-row" }, progress, progressText, cancel);
	const title = el("p", { class: "caption-prompt" });
	const details = el("p", { class: "caption-details" });
	const use = (name, options) => textButton(t(`use.${name}`), () => actions.reuse(pictureNow(), options), { class: "small" });
	const buttons = el("div", { id: "stage-actions" }, use("all", {}), use("seed", { seedOnly: true }));
	const caption = el("div", { class: "caption" }, el("div", { class: "caption-text" }, title, details), buttons);
	section.append(canvas, progressRow, caption);

	const jobs = () => store.get("jobs");
	const shownJob = () => jobs().find((job) => job.id === store.get("shown")?.job);
	const firstJob = () => jobs().find((job) => job.state === "running") ?? jobs().find(isUnfinished);

	// The job whose progress is shown: the one in the stage, else the one that runs or waits first
	const activeJob = () => {
		const job = shownJob();
		return job && isUnfinished(job) ? job : firstJob();
	};

	const sizeOf = ({ request }) => ({ width: request.width ?? actions.defaultSide(), height: request.height ?? actions.defaultSide() });

	// The picture as the history has it, else as its job says
	const pictureNow = () => {
		const picture = shownRow(store);
		const kept = picture?.name && store.get("rows").find((row) => row.name === picture.name);
		return kept || (picture && shownJob() ? { ...picture, ...sizeOf(shownJob()) } : picture);
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
		const next = firstJob();
		if (next) store.set("shown", { job: next.id });
		else if (shown && shown.state !== "failed") store.set("shown", pictureNow() && { picture: pictureNow() });
	}

	function tell(job) {
		if (job.state === "done") announce(t("job.done", { version: job.version, seed: job.images?.at(-1)?.seed ?? "" }));
		else if (job.state === "failed") announce(sentence(job.error));
	}

	function render() {
		const shown = store.get("shown");
		const newest = ctx.rows?.row(0) ?? store.get("rows")[0];
		if (shown === null && newest) return store.set("shown", { picture: newest });
		const job = shownJob();
		const forming = job && isUnfinished(job) ? job : null;
		const picture = pictureNow();
		renderImage(forming, picture);
		renderMessage(job, picture);
		renderCaption(forming, picture);
		renderProgress();
	}

	function renderImage(forming, picture) {
		const preview = forming?.preview;
		const source = preview ?? picture?.url;
		section.classList.toggle("forming", forming !== null);
		section.classList.toggle("preview", Boolean(preview));
		// The last picture stays, dimmed, until the first preview of the next one: nothing flashes or moves
		if (!source) return forming ?? show(image, false);
		const size = preview ? sizeOf(forming) : picture;
		if (size.width && size.height) canvas.style.setProperty("--ratio", String(size.width / size.height));
		if (image.getAttribute("src") !== source) image.src = source;
		image.alt = preview ? t("result.forming") : t("result", { prompt: picture?.prompt ?? "" });
		show(image, true);
	}

	function renderMessage(job, picture) {
		let text = "";
		if (job?.state === "failed") text = sentence(job.error);
		else if (!job && !picture) text = t(store.get("status") === null ? "connection.connecting" : "stage.empty");
		setText(message, text);
		show(message, text !== "");
		message.classList.toggle("error", job?.state === "failed");
	}

	function renderCaption(forming, picture) {
		const about = forming ? { ...forming.request, ...sizeOf(forming), version: forming.version } : picture;
		setText(title, about?.prompt ?? "");
		title.title = title.textContent;
		const { version, width, height, steps } = about ?? {};
		const seed = about && seedText(about);
		setText(details, [
			version, seed && t("caption.seed", { seed }), width && height && `${width} × ${height}`, steps && t("caption.steps", { count: steps }),
		].filter(Boolean).join(" · "));
		buttons.classList.toggle("unseen", !picture || forming !== null);
	}

	function renderProgress() {
		const job = activeJob();
		progressRow.classList.toggle("unseen", !job);
		if (!job) return;
		progress.value = job.step / job.steps;
		setText(progressText, actions.progressText(job));
	}

	store.on("jobs", () => {
		follow();
		render();
	});
	store.on("shown rows status connection", render);
}

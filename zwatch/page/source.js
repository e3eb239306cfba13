// The picture that is changed, and the LoRAs: their parts are loaded when there are some

import { el, icon, show } from "./dom.js";
import { sentence } from "./i18n.js";
import { closeViews, textButton } from "./parts.js";
import { toast } from "./toast.js";

// Returns the rows of the form
export function sourceRows(ctx) {
	const { store, t, actions } = ctx;
	const input = el("input", { type: "file", accept: "image/*", hidden: true, "aria-label": t("source.choose") });
	const choose = textButton(t("source.choose"), () => input.click(), { class: "small", title: t("source.title") });
	choose.prepend(icon("image"));
	const picture = el("div", { id: "source" }, choose, input);
	const loras = el("div", { id: "loras", hidden: true });
	const say = (error) => toast(sentence(error), { error: true });
	let card;
	let chips;

	const loaded = () => (card ??= import("./sourcecard.js").then((module) => module.makeCard(ctx, picture, () => input.click())));

	input.addEventListener("change", () => {
		const [file] = input.files;
		input.value = ""; // the same file can be chosen again
		if (file) actions.startFrom(file);
	});

	// Takes a file, or a row of the history, as the picture that is changed; {sent: row} is what that was made from
	actions.startFrom = (found) => loaded().then((one) => one.take(found)).then(closeViews, say);

	// Adds a job, with the picture and the mask of its request, or those of `of`, a job or a row. Returns what the server answers
	actions.post = async (request, of) => (request.image || request.source ? (await loaded()).post(request, of) : ctx.api.call("POST", "/jobs", request));

	store.on("jobs", (jobs) => jobs.some(({ request }) => request.source) && loaded().catch(say)); // it notes their pictures

	store.on("settings", ({ image }) => {
		show(choose, !image);
		if (image) loaded().then((found) => found.follow(image)).catch(say);
		else card?.then((found) => found.follow(null));
	});
	store.on("settings status", () => {
		const { loras: known, loraFault } = store.get("status") ?? {};
		const isUsed = Boolean(store.get("settings")?.loras.length || known?.length || loraFault);
		show(loras, isUsed);
		if (isUsed) chips ??= import("./loras.js").then((module) => module.makeChips(ctx, loras)).catch(say);
	});
	return [picture, loras];
}

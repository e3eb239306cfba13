// The picture that is changed, and the LoRAs: their parts are loaded when there are some

import { el, icon, show } from "./dom.js";
import { sentence } from "./i18n.js";
import { textButton } from "./parts.js";
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
		if (file) actions.startFrom(file).catch(say);
	});

	// Takes a file, or a row of the history, as the picture that is changed. It throws if a file is none
	actions.startFrom = async (found) => (await loaded()).take(found);

	// Returns the body of a request with the picture and its mask
	actions.complete = async (request) => (request.image || request.source ? (await loaded()).complete(request) : request);

	// Takes what a picture of the history was made from, if this browser sent it
	actions.takeSent = async (row) => loaded().then((found) => found.takeSent(row)).catch(say);

	// Keeps the picture of a request that was accepted, for those who draw it again
	actions.sent = async (request) => request.image && (await loaded()).sent(request);

	store.on("settings", ({ image }) => {
		show(choose, !image);
		if (image) loaded().then((found) => found.follow(image)).catch(say);
		else card?.then((found) => found.follow(null));
	});
	store.on("settings status", () => {
		if (!store.get("settings")?.loras.length && !store.get("status")?.loras?.length) return show(loras, false);
		show(loras, true);
		chips ??= import("./loras.js").then((module) => module.makeChips(ctx, loras)).catch(say);
	});
	return [picture, loras];
}

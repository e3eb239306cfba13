// A picture that is dropped, pasted or chosen fills in its settings, or is the one that is changed

import { byId, el, isTyping, show } from "./dom.js";
import { sentence } from "./i18n.js";
import { closeViews, textButton } from "./parts.js";
import { toast } from "./toast.js";

const SOURCES = { zwatch: "zwatch", automatic1111: "AUTOMATIC1111", comfyui: "ComfyUI" };
const MOST_BYTES = 32 * 1024 * 1024; // the most that the server reads

export function initDrop(ctx) {
	const { t } = ctx;
	const start = el("p", { text: t("drop.start") });
	const fill = el("p", { text: t("drop.here") });
	const shade = el("div", { class: "drop-shade", hidden: true }, start, fill);
	document.body.append(shade);

	for (const kind of ["dragover", "drop"]) {
		addEventListener(kind, (event) => {
			if (!event.dataTransfer.types.includes("Files")) return;
			event.preventDefault(); // else the browser would leave the page and show the file
			show(shade, kind === "dragover");
			for (const one of [start, fill]) one.classList.toggle("over", one === event.target);
			const uses = new Map([[start, begin], [fill, read]]);
			if (kind === "drop") (uses.get(event.target) ?? take)(ctx, event.dataTransfer.files[0]);
		});
	}
	addEventListener("dragleave", (event) => event.relatedTarget ?? show(shade, false)); // null: the pointer left the window
	addEventListener("paste", (event) => {
		const [file] = event.clipboardData?.files ?? [];
		if (!file || (isTyping(event.target) && event.clipboardData.types.includes("text/plain"))) return;
		event.preventDefault();
		take(ctx, file);
	});
	const input = el("input", { type: "file", accept: "image/png,image/jpeg,image/webp", hidden: true, "aria-label": t("drop.choose") });
	input.addEventListener("change", async () => {
		await read(ctx, input.files[0]);
		input.value = ""; // the same file can be chosen again
	});
	byId("strip-buttons").prepend(textButton(t("drop.choose"), () => input.click(), { class: "quiet", title: t("drop.title") }), input);
}

// A picture that has settings fills them in; any other is changed
const take = (ctx, file) => read(ctx, file, true);

const begin = (ctx, file) => file && ctx.actions.startFrom(file);

async function read(ctx, file, isAny) {
	const { t } = ctx;
	if (!file) return;
	try {
		if (file.size > MOST_BYTES) throw new Error(t("drop.tooLarge"));
		const { version, source, settings } = await ctx.api.call("POST", "/api/picture_settings", file);
		closeViews();
		ctx.actions.use(settings, {});
		const text = t("drop.filled", { source: `${SOURCES[source]} ${version ?? ""}`.trim() });
		toast(text, { action: { label: t("use.picture"), run: () => begin(ctx, file) } });
	} catch (error) {
		if (isAny) begin(ctx, file);
		else toast(t("drop.failed", { name: file.name, reason: sentence(error) }), { error: true });
	}
}

// A short message at the bottom of the window, which goes away by itself

import { el, front, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { textButton } from "./parts.js";
import { copy } from "./settings.js";

const SECONDS = 6;
let last = null;

/**
 * Shows a message; a newer one replaces it, an `error` stays until it is closed. `action` is {label, run}; `onEnd` is called
 * when it goes away without its action. Returns a function that ends it.
 */
export function toast(text, { action = null, error = false, onEnd = () => {} } = {}) {
	last?.();
	const host = front();
	const end = (after = onEnd) => {
		if (last !== end) return;
		last = null;
		clearTimeout(timer);
		box.remove();
		after();
	};
	const words = el("p", { text: error && text });
	const box = el("div", { class: error ? "toast error" : "toast", role: error && "alert", "aria-live": !error && "polite" },
		words, action && textButton(action.label, () => end(action.run)),
		iconButton("close", t("close"), () => end()));
	const timer = error ? 0 : setTimeout(() => end(), SECONDS * 1000);
	// What is inside a closed dialog cannot be seen
	if (host !== document.body) host.addEventListener("close", () => last === end && front().append(box), { once: true });
	host.append(box);
	// Only what changes in a live region is spoken
	setTimeout(() => (words.textContent = text), 50);
	last = end;
	return end;
}

export async function copyAndSay(text) {
	const copied = await copy(text);
	toast(t(copied ? "copy.done" : "copy.failed"), { error: !copied });
}

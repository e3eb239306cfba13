// The keys that work everywhere on the page

import { showKeys } from "./dialogs.js";
import { byId, isTyping } from "./dom.js";

// Listens to the keys. A key that a part of the page has used is left alone
export function initKeys({ actions }) {
	byId("keys-button").addEventListener("click", showKeys);

	const uses = {
		"?": showKeys,
		p: () => byId("field-prompt").focus(),
		"/": () => actions.search(),
		ArrowLeft: () => actions.walk(-1),
		ArrowRight: () => actions.walk(1),
	};
	addEventListener("keydown", (event) => {
		// While an input method composes a word (Chinese), its keys are not ours
		if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
		const isCommand = event.key === "Enter" && (event.ctrlKey || event.metaKey);
		// A key that is held acts once; only in a text it repeats
		const isHeld = event.repeat && (isCommand || event.key === "Escape" || (event.key === "Enter" && event.target.localName !== "textarea"));
		if (isCommand || isHeld) event.preventDefault();
		if (isHeld) return;
		if (isCommand) return actions.generate();
		if (event.ctrlKey || event.metaKey || event.altKey) return;
		if (event.key === "Escape") return actions.cancelShown();
		const isOwn = event.key.startsWith("Arrow") && event.target instanceof Element && event.target.closest("#strip, [role=slider]");
		const use = uses[event.key] ?? uses[event.key.toLowerCase()];
		if (!use || isOwn || isTyping(event.target)) return;
		event.preventDefault();
		use();
	});
}

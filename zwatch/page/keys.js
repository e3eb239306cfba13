// The keys that work everywhere on the page

import { showKeys } from "./dialogs.js";
import { byId, isTyping } from "./dom.js";

// Listens to the keys. A key that a part of the page has used is left alone
export function initKeys({ actions }) {
	byId("keys-button").addEventListener("click", showKeys);

	addEventListener("keydown", (event) => {
		// While an input method composes a word (Chinese), its keys are not ours
		if (event.defaultPrevented || event.isComposing || document.querySelector("dialog[open]")) return;
		if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
			event.preventDefault();
			// A held key is one wish
			if (!event.repeat) actions.generate();
			return;
		}
		if (event.ctrlKey || event.metaKey || event.altKey) return;
		if (event.key === "Escape") event.repeat || actions.cancelShown();
		else if (!isTyping(event.target)) useKey(event, actions);
	});
}

function useKey(event, actions) {
	const uses = {
		"?": showKeys,
		p: () => byId("field-prompt").focus(),
		"/": () => actions.search?.(),
		ArrowLeft: () => actions.walk(-1),
		ArrowRight: () => actions.walk(1),
	};
	const use = uses[event.key] ?? uses[event.key.toLowerCase()];
	const isOwn = event.key.startsWith("Arrow") && event.target instanceof Element && event.target.closest("#strip, [role=slider]");
	if (use === undefined || isOwn) return;
	event.preventDefault();
	use();
}

// The keys that work everywhere on the page

import { showKeys } from "./dialogs.js";
import { byId, isTyping } from "./dom.js";

const isCommand = ({ key, ctrlKey, metaKey }) => key === "Enter" && (ctrlKey || metaKey);

// Listens to the keys. A key that a part of the page has used is left alone
export function initKeys({ actions }) {
	byId("keys-button").addEventListener("click", showKeys);

	const uses = {
		p: () => byId("field-prompt").focus(),
		"/": () => actions.search(),
		ArrowLeft: () => actions.walk(-1),
		ArrowRight: () => actions.walk(1),
	};
	// A key that is held acts once; only in a text it repeats
	addEventListener("keydown", (event) => {
		const { key, target } = event;
		const isText = key === "Delete" ? isTyping(target) : key === "Enter" && target.localName === "textarea" && !isCommand(event);
		if (!event.repeat || isText || !["Enter", "Escape", "Delete"].includes(key)) return;
		event.preventDefault();
		event.stopImmediatePropagation();
	}, true);
	addEventListener("keydown", (event) => {
		// While an input method composes a word (Chinese), its keys are not ours. Filled in fields have no key
		if (event.defaultPrevented || event.isComposing || !event.key) return;
		if (event.key === "?" && !isTyping(event.target)) return showKeys();
		if (document.querySelector("dialog[open]")) return;
		if (isCommand(event)) {
			event.preventDefault();
			return actions.generate();
		}
		if (event.ctrlKey || event.metaKey || event.altKey) return;
		if (event.key === "Escape") return actions.cancelShown();
		const isOwn = event.key.startsWith("Arrow") && event.target instanceof Element && event.target.closest("#strip, [role=slider], [type=range]");
		const use = uses[event.key] ?? uses[event.key.toLowerCase()];
		if (!use || isOwn || isTyping(event.target)) return;
		event.preventDefault();
		use();
	});
}

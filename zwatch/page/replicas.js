// The replicas of a fleet, in the panel of versions

import { el, show } from "./dom.js";
import { number, t } from "./i18n.js";
import { sheet } from "./parts.js";

export function makeReplicas({ ctx, table }) {
	const shown = el("table", { class: "trial-sides", "aria-label": t("replicas"), hidden: true });
	table.before(shown);
	let readAt = -Infinity;
	return async () => {
		if (!ctx.store.get("status")?.replicas || performance.now() - readAt < 1500) return;
		readAt = performance.now();
		const { replicas } = await ctx.api.call("GET", "/status").catch(() => ({}));
		if (!replicas) return; // the panel says what is wrong
		const row = ({ name, host, device, state, versions, problem, attempt, requests }) => [
			[name, [host, device].filter(Boolean).join(" · ")], [t(`replicas.${state}`), problem ?? attempt], [versions.join(", ") || "–"], [number(requests)],
		];
		shown.replaceChildren(...sheet(["replicas", "replicas.state", "versions", "replicas.drawn"].map((key) => [t(key)]), replicas.map(row)));
		show(shown, true);
	};
}

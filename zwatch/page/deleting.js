// Deleting pictures: one, which can be undone for some seconds; all after a question

import { number, sentence } from "./i18n.js";
import { toast } from "./toast.js";

// Returns {one(row), all(total)}. `lists` do not show what is `hidden`
export function createDeleting({ api, t, confirm }, lists, hidden) {
	let waiting = null;
	const fail = (error) => toast(t("notDone", { reason: sentence(error) }), { error: true });

	// The server is asked only when the message with "Undo" has gone
	function one(row) {
		const end = async (isDeleted) => {
			if (waiting?.row === row) waiting = null;
			try {
				if (isDeleted) await api.call("DELETE", row.url);
			} catch (error) {
				isDeleted = error.status === 404;
				if (!isDeleted) fail(error);
			}
			hidden.delete(row.name);
			for (const list of lists) isDeleted ? list.drop(row.name) : list.changed();
		};
		const close = toast(t("history.deleted"), {
			action: { label: t("history.undo"), run: () => end(false) }, onEnd: () => end(true),
		});
		waiting = { row, close };
		hidden.add(row.name);
		for (const list of lists) list.changed();
	}

	async function all(total) {
		const question = t("history.deleteAllQuestion", { count: total, n: number(total) });
		if (!(await confirm(question, t("history.deleteAll")))) return;
		waiting?.close();
		try {
			await api.call("DELETE", "/history");
		} catch (error) {
			fail(error);
		}
		for (const list of lists) list.reset();
	}

	// What waits for "Undo" is deleted when the page is closed
	addEventListener("pagehide", () => waiting && fetch(waiting.row.url, { method: "DELETE", keepalive: true }));

	return { one, all };
}

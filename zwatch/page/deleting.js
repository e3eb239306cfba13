// Deleting pictures: one, which can be undone for some seconds; all after a question

import { number } from "./i18n.js";
import { toast } from "./toast.js";

// Returns {one(row), all(total)}. `lists` show pictures; `gone(name)` is told of each, or null: all
export function createDeleting({ api, t, confirm }, lists, gone) {
	let waiting = null;
	const fail = (error) => toast(t("notDone", { reason: error.message }), { error: true });

	// The server is asked only when the message with "Undo" has gone
	function one(row) {
		const again = () => {
			waiting = null;
			for (const list of lists) {
				list.hidden.delete(row.name);
				list.refresh();
			}
		};
		const send = async () => {
			try {
				await api.call("DELETE", row.url);
			} catch (error) {
				if (error.status !== 404) fail(error);
			}
			again();
		};
		const end = toast(t("history.deleted"), { action: { label: t("history.undo"), run: again }, onEnd: send });
		waiting = { row, end };
		for (const list of lists) list.hide(row.name);
		gone(row.name);
	}

	async function all(total) {
		const count = { count: total, n: number(total) };
		if (!(await confirm(t("history.deleteAllQuestion", count), t("history.deleteAll")))) return;
		waiting?.end();
		try {
			await api.call("DELETE", "/history");
		} catch (error) {
			fail(error);
		}
		await Promise.all([...lists].map((list) => list.reset()));
		gone(null);
	}

	// What waits for "Undo" is deleted when the page is closed; `keepalive` lets the call outlive it
	addEventListener("pagehide", () => waiting && fetch(waiting.row.url, { method: "DELETE", keepalive: true }));

	return { one, all };
}

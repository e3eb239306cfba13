// Deleting pictures: one at once, which can be undone for some seconds; all after a question.

import { number } from "./i18n.js";
import { toast } from "./toast.js";

/** Returns {one(row), all(total)}. `lists` are the HistoryRows that show pictures; `names` that vanished are told to `gone`. */
export function createDeleting({ api, t, confirm, announce }, lists, gone) {
  let waiting = null;

  /** Takes a picture out of the lists. The server is asked only when the message with "Undo" has gone. */
  function one(row) {
    const shown = [...lists];
    for (const list of shown) {
      list.hidden.add(row.name);
      list.remove([row.name]);
    }
    gone(row.name);
    const back = () => {
      waiting = null;
      for (const list of lists) {
        list.hidden.delete(row.name);
        list.refresh();
      }
    };
    const end = toast(t("history.deleted"), { action: { label: t("history.undo"), run: back }, onEnd: () => send(row) });
    waiting = { row, end };
  }

  async function send(row) {
    waiting = null;
    try {
      await api.call("DELETE", row.url);
    } catch (error) {
      if (error.status !== 404) toast(t("history.notDeleted", { reason: error.message }), { error: true });
    }
    for (const list of lists) {
      list.hidden.delete(row.name);
      list.refresh();
    }
  }

  /** Deletes all pictures, if the person says so; returns whether they are deleted. */
  async function all(total) {
    const question = t("history.deleteAllQuestion", { count: total, n: number(total) });
    if (!(await confirm(question, t("history.deleteAllShort")))) return false;
    waiting?.end();
    try {
      const { deleted } = await api.call("DELETE", "/history");
      announce(t("history.deletedAll", { count: deleted, n: number(deleted) }));
    } catch (error) {
      toast(t("history.notDeleted", { reason: error.message }), { error: true });
    }
    await Promise.all([...lists].map((list) => list.reset()));
    gone(null);
    return true;
  }

  // The page is closed: what waits for "Undo" is deleted now. `keepalive` lets the call outlive the page.
  addEventListener("pagehide", () => {
    if (waiting) fetch(waiting.row.url, { method: "DELETE", keepalive: true });
  });

  return { one, all };
}

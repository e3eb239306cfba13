// A short message at the bottom of the window, which goes away by itself, with one thing to do about it.

import { el, iconButton } from "./dom.js";
import { t } from "./i18n.js";

const SECONDS = 6;
let open = null;

/**
 * Shows a message; a newer one replaces it. `action` is {label, run}; `onEnd` is called once when the message goes away
 * without its action. An `error` stays until it is closed.
 */
export function toast(text, { action = null, error = false, onEnd = () => {} } = {}) {
  open?.end();
  const host = [...document.querySelectorAll("dialog[open]")].at(-1) ?? document.body;
  const box = el("div", { class: error ? "toast error" : "toast", role: error ? "alert" : "status" }, el("p", { text }));
  let timer = 0;
  let ended = false;
  const end = (acted = false) => {
    if (ended) return;
    ended = true;
    clearTimeout(timer);
    box.remove();
    host.removeEventListener("close", move);
    if (open === one) open = null;
    if (!acted) onEnd();
  };
  const one = { end };
  // What is outside an open dialog cannot be clicked; what is inside a closed one cannot be seen.
  const move = () => document.body.append(box);
  if (action) {
    const act = () => {
      end(true);
      action.run();
    };
    box.append(el("button", { type: "button", class: "toast-action", text: action.label, on: { click: act } }));
  }
  box.append(iconButton("close", t("close"), () => end()));
  host.addEventListener("close", move);
  host.append(box);
  open = one;
  if (!error) timer = setTimeout(end, SECONDS * 1000);
  return end;
}

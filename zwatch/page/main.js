// Wires the page's parts

import { call, setTokenPrompt } from "./api.js";
import { initCompare } from "./compare.js";
import { askForToken, confirm } from "./dialogs.js";
import { byId, front, setText } from "./dom.js";
import { initDrop } from "./drop.js";
import { initForm } from "./form.js";
import { initGallery } from "./gallery.js";
import { applyTo, t } from "./i18n.js";
import { initJobs } from "./jobs.js";
import { initKeys } from "./keys.js";
import { initSettings, toFragment } from "./settings.js";
import { initStage } from "./stage.js";
import { initStatusBar } from "./statusbar.js";
import { createStore } from "./store.js";
import { follow } from "./stream.js";
import { copyAndSay } from "./toast.js";
import { initVersions } from "./versions.js";

applyTo(document);
setTokenPrompt(askForToken);

const store = createStore({
	connection: "connecting", status: null, jobs: [], shown: null, rows: [], settings: null,
});

const announcer = byId("announcer");

function announce(text) {
	setText(announcer, "");
	front().append(announcer);
	setTimeout(() => setText(announcer, text), 50);
}

// The modules below fill `actions`
const ctx = { store, api: { call }, t, announce, confirm, actions: {} };

initSettings(ctx);
initForm(ctx);
initJobs(ctx);
initStage(ctx);
initStatusBar(ctx);
initGallery(ctx);
initCompare(ctx);
initVersions(ctx);
initDrop(ctx);
initKeys(ctx);

byId("share").addEventListener("click", () => copyAndSay(location.origin + location.pathname + toFragment(store.get("settings")), "share.done"));
follow(store);

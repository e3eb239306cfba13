// Wires the page: the store, the event stream, the regions of the screen

import { call, setTokenPrompt } from "./api.js";
import { initCompare } from "./compare.js";
import { askForToken, confirm } from "./dialogs.js";
import { byId, el, setText } from "./dom.js";
import { initDrop } from "./drop.js";
import { initForm } from "./form.js";
import { initGallery } from "./gallery.js";
import * as i18n from "./i18n.js";
import { initJobs } from "./jobs.js";
import { initKeys } from "./keys.js";
import { initSettings, toFragment } from "./settings.js";
import { initStage } from "./stage.js";
import { initStatusBar } from "./statusbar.js";
import { createStore } from "./store.js";
import { follow } from "./stream.js";
import { copyAndSay } from "./toast.js";
import { initVersions } from "./versions.js";

i18n.applyTo(document);
setTokenPrompt(askForToken);

const store = createStore({
	connection: "connecting", status: null, jobs: [], shown: null, rows: [], settings: null,
});

function announce(text) {
	setText(byId("announcer"), "");
	setTimeout(() => setText(byId("announcer"), text), 50);
}

// `actions` is filled by the modules below; gallery.js, compare.js, versions.js and drop.js add their own
const ctx = { store, api: { call }, t: i18n.t, i18n, el, announce, confirm, actions: {} };

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

byId("share").addEventListener("click", () => copyAndSay(location.origin + location.pathname + toFragment(store.get("settings"))));
follow(store);

// Wires the page's parts

import { call, setTokenPrompt } from "./api.js";
import { askForToken, confirm } from "./dialogs.js";
import { byId, front, setText } from "./dom.js";
import { initDrop } from "./drop.js";
import { initForm } from "./form.js";
import { initGallery } from "./gallery.js";
import { applyTo, sentence, t } from "./i18n.js";
import { initJobs } from "./jobs.js";
import { initKeys } from "./keys.js";
import { initSettings, toFragment } from "./settings.js";
import { initStage } from "./stage.js";
import { initStatusBar } from "./statusbar.js";
import { createStore } from "./store.js";
import { follow } from "./stream.js";
import { copyAndSay, toast } from "./toast.js";
import { initVersions } from "./versions.js";

applyTo(document);
setTokenPrompt(askForToken);

const store = createStore({
	connection: "connecting", status: null, jobs: [], shown: null, rows: [], settings: null, source: null,
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
initVersions(ctx);
initDrop(ctx);
initKeys(ctx);

// What few visits use is loaded when it is used
const later = (load, name) => (...given) =>
	load().then((module) => module[name](ctx, ...given)).catch((error) => toast(sentence(error), { error: true }));
const compare = () => import("./compare.js");
ctx.actions.compare = later(compare, "compare");
ctx.actions.compareModels = later(compare, "compareModels");
byId("pair-button").addEventListener("click", later(() => import("./pair.js"), "choosePair"));

byId("share").addEventListener("click", () => copyAndSay(location.origin + location.pathname + toFragment(store.get("settings"))));
follow(store);

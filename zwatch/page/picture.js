// What a row of the history says

const FIELDS = ["prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed", "format", "quality", "source", "strength", "mask_blur", "loras"];

// Returns a picture's seed as digits: its name has every one of them
export function seedText(row) {
	return /_seed(\d+)[_.]/.exec(row.name ?? "")?.[1] ?? String(row.seed ?? "");
}

// Returns the settings that make a picture again
export function settingsOf(row) {
	const settings = Object.fromEntries(FIELDS.filter((field) => (row[field] ?? null) !== null).map((field) => [field, row[field]]));
	const seed = seedText(row);
	if (seed) settings.seed = Number.isSafeInteger(Number(seed)) ? Number(seed) : seed;
	if (settings.format === "png") delete settings.quality;
	if (!settings.source) delete settings.strength, delete settings.mask_blur;
	if (settings.loras?.length) settings.loras = settings.loras.map(({ name, scale }) => ({ name, scale }));
	else delete settings.loras;
	return settings;
}

// Returns the `curl` command that makes a picture again, for a POSIX shell
export function curlText(row, origin, toJson) {
	const { source, ...settings } = settingsOf(row);
	if (!settings.negative_prompt) delete settings.negative_prompt;
	if (settings.format === "png") delete settings.format;
	const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
	const token = document.cookie.includes("zwatch-token=1") ? ' -H "Authorization: Bearer $ZWATCH_TOKEN"' : "";
	const field = ([name, value]) => ` --form-string ${quoted(`${name}=${Array.isArray(value) ? toJson(value) : value}`)}`;
	// The server does not have the file of a picture that was changed, nor that of its mask
	const form = () => `-F image=@image.png${row.mask ? " -F mask=@mask.png" : ""}${Object.entries(settings).map(field).join("")}`;
	const body = source ? form() : `-d ${quoted(toJson(settings))}`;
	return `curl -fsS ${quoted(`${origin}/generate`)}${token} ${body} -o ${quoted(row.name)}`;
}

export function describe(row, t) {
	const line = (row.prompt || t("history.noPrompt")).replace(/\s+/g, " ").trim();
	const prompt = line.length > 120 ? `${line.slice(0, 119)}…` : line;
	return t("history.picture", { prompt, version: row.version || "–", seed: seedText(row) });
}

// Returns the row of a picture of a job
export function rowOfJob(job, image) {
	return { version: job.version, digest: job.digest, created: job.created, ...job.request, loras: job.loras, ...image };
}

// Returns the row of the picture in the stage, or null
export function shownRow(store) {
	const shown = store.get("shown");
	if (shown?.picture) return shown.picture;
	const job = shown?.job && store.get("jobs").find((one) => one.id === shown.job);
	const image = job?.images?.at(-1);
	return image?.url ? rowOfJob(job, image) : null;
}

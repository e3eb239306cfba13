// What a row of the history says: its settings, its exact seed, the words and the command for it.

const FIELDS = ["prompt", "negative_prompt", "width", "height", "steps", "guidance_scale", "seed", "format", "quality"];

/** Returns a picture's seed as text: its name has every digit, a JSON number only those up to 2^53. */
export function seedText(row) {
  const found = /_seed(\d+)(?:_\d+)?\.[a-z]+$/.exec(row.name ?? "");
  return found ? found[1] : row.seed === null || row.seed === undefined ? "" : String(row.seed);
}

/** Returns the settings that make a picture again, without those that its file does not have. */
export function settingsOf(row) {
  const settings = {};
  for (const field of FIELDS) {
    if (row[field] !== null && row[field] !== undefined) settings[field] = row[field];
  }
  const seed = seedText(row);
  if (seed) settings.seed = Number.isSafeInteger(Number(seed)) ? Number(seed) : seed;
  if (settings.format === "png") delete settings.quality;
  return settings;
}

/** Returns the body of a `/generate` call as JSON text, with every digit of the seed. */
export function requestText(row) {
  const settings = settingsOf(row);
  if (!settings.negative_prompt) delete settings.negative_prompt;
  if (settings.format === "png") delete settings.format;
  const { seed, ...others } = settings;
  const text = JSON.stringify(others);
  return seed === undefined ? text : `${text.slice(0, -1)}${text === "{}" ? "" : ","}"seed":${seed}}`;
}

/** Returns the `curl` command that makes a picture again, quoted for a POSIX shell. */
export function curlText(row, origin, withToken) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const token = withToken ? ' -H "Authorization: Bearer $ZWATCH_TOKEN"' : "";
  return `curl -fsS ${quoted(`${origin}/generate`)}${token} -d ${quoted(requestText(row))} -o ${quoted(row.name)}`;
}

/** Returns the address of a picture's thumbnail. */
export function thumbnailOf(row) {
  return `${row.url}/thumbnail`;
}

/** Returns the words that name a picture to a screen reader. */
export function describe(row, t) {
  const prompt = row.prompt || t("history.noPrompt");
  return t("history.picture", { prompt: shortened(prompt), version: row.version || "–", seed: seedText(row) });
}

/** Returns a digest's first characters: enough to tell versions apart. */
export function shortDigest(digest) {
  return digest ? digest.slice(0, 12) : "";
}

/** Returns a history row for picture `number` of a job, from what the job says. */
export function rowOfJob(job, image) {
  const request = job.request ?? {};
  return {
    ...request,
    name: image.name,
    url: image.url,
    seed: image.seed,
    version: image.version ?? job.version ?? null,
    digest: image.digest ?? job.digest ?? null,
    created: job.created ?? null,
  };
}

/** Returns the row of the picture in the stage: that of the history, or the last one of a job; null if there is none. */
export function shownRow(store) {
  const shown = store.get("shown");
  if (shown?.picture) return shown.picture;
  const job = shown?.job && store.get("jobs").find((one) => one.id === shown.job);
  const image = job?.images?.at(-1);
  return image?.url ? rowOfJob(job, image) : null;
}

/** Copies text to the clipboard; returns whether that was possible. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyOldWay(text); // `navigator.clipboard` exists on https and localhost only
  }
}

function copyOldWay(text) {
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  // Inside the open dialog: nothing outside it can have the focus.
  const focused = document.activeElement;
  (focused?.closest("dialog") ?? document.body).append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}

function shortened(text) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length > 120 ? `${line.slice(0, 119)}…` : line;
}

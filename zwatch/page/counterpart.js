// The same prompt and seed on another version: found in the history, or drawn.

import { rowOfJob, seedText, settingsOf } from "./picture.js";

const SAME = ["prompt", "width", "height", "steps"];
const SAME_IF_KNOWN = ["negative_prompt", "guidance_scale"];

/** Returns whether two pictures are of different versions; one that was sealed again under its name is another. */
export function isOtherVersion(one, other) {
  return one.version !== other.version || Boolean(one.digest && other.digest && one.digest !== other.digest);
}

/** Returns whether two pictures were asked for in the same words with the same numbers. */
export function isSameRequest(one, other) {
  return seedText(one) === seedText(other) && SAME.every((field) => one[field] === other[field]) &&
    SAME_IF_KNOWN.every((field) => (one[field] ?? other[field]) === (other[field] ?? one[field]));
}

/** Returns the version to compare a picture with: the one that serves, else another that is loaded; null if there is none. */
export function otherVersion(row, serving, versions) {
  if (serving && isOtherVersion(row, serving)) return { version: serving.version, digest: serving.digest, model: "current" };
  const loaded = versions.filter((one) => one.resident && isOtherVersion(row, { version: one.name, digest: one.digest }));
  const [first] = loaded.filter((one) => one.name !== row.version);
  return first ? { version: first.name, digest: first.digest, model: first.name } : null;
}

/** Returns the other version for a picture as the server sees it now, or null. */
export async function findOther(ctx, row) {
  if (!row.prompt) return null;
  const { versions } = await ctx.api.call("GET", "/versions");
  return otherVersion(row, ctx.store.get("status")?.serving, versions);
}

/** Returns the history's picture of the same request on another version (on this one, if it is given), or null. */
export async function findInHistory(ctx, row, other) {
  if (!row.prompt) return null;
  const query = new URLSearchParams({ limit: 500, seed: seedText(row) });
  const { images } = await ctx.api.call("GET", `/history?${query}`);
  return images.find((one) => isSameRequest(one, row) && isOtherVersion(one, row) && (!other || !isOtherVersion(one, other))) ?? null;
}

/** Asks for the picture on the other version. `onJob(job)` follows the job; returns a function that stops following. */
export async function draw(ctx, row, other, onJob) {
  const { id } = await ctx.api.call("POST", "/jobs", { ...settingsOf(row), n: 1, model: other.model });
  let last = null;
  return ctx.store.on("jobs", (jobs) => {
    const job = jobs.find((one) => one.id === id);
    if (!job || job === last) return;
    last = job;
    const image = job.images?.at(-1);
    onJob(job, job.state === "done" && image ? rowOfJob(job, image) : null);
  });
}

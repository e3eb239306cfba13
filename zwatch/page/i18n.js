// The page's language: strings by key, numbers and times

import strings, { reasons } from "./strings.js";
import stringsGallery from "./strings-gallery.js";

const languages = [new URLSearchParams(location.search).get("lang"), ...(navigator.languages ?? [navigator.language])];
// The language of the page: "en" or "zh"
const language = languages.map((name) => /^(zh|en)\b/i.exec(name ?? "")?.[1].toLowerCase()).find(Boolean) ?? "en";
const locale = language === "zh" ? "zh-CN" : (languages.find((name) => /^en\b/i.test(name ?? "")) ?? "en");

const texts = Object.assign(strings, stringsGallery);
const place = language === "zh" ? 1 : 0;

// Returns a string, its `{name}` parts replaced. One that is "one|other" is chosen by the parameter `count`
export function t(key, parameters = {}) {
	const [one, other = one] = (texts[key]?.[place] ?? key).split("|");
	return (parameters.count === 1 ? one : other).replace(/\{(\w+)\}/g, (whole, name) => parameters[name] ?? whole);
}

// Returns the server's sentence; in Chinese after what its `code` means
export const reasoned = (code, sentence) => (place && reasons[code] ? `${reasons[code]}：${sentence}` : sentence);

// Returns what an error says
export function sentence(error) {
	const key = `error.code.${error.code}`;
	if (key in texts) return t(key, { message: error.message, seconds: error.retryAfter ?? 2 });
	return error instanceof Error ? error.message : reasoned(error.code, error.message);
}

// Fills in a document's strings: `data-t` is the text, `data-t-label` and `data-t-title` are attributes
export function applyTo(root) {
	document.documentElement.lang = language === "zh" ? "zh-Hans" : "en";
	for (const [name, property] of Object.entries({ t: "textContent", "t-label": "ariaLabel", "t-title": "title" })) {
		for (const element of root.querySelectorAll(`[data-${name}]`)) element[property] = t(element.getAttribute(`data-${name}`));
	}
}

export const number = (value, options = {}) => new Intl.NumberFormat(locale, options).format(value);

export const percent = (value) => number(value, { style: "percent", maximumFractionDigits: 0 });

// The time of day, on another day with the date
export function time(text) {
	const isToday = new Date(text).toDateString() === new Date().toDateString();
	return clock(text, { ...(!isToday && { month: "short", day: "numeric" }), hour: "2-digit", minute: "2-digit" });
}

export const dateTime = (text) => clock(text, { dateStyle: "medium", timeStyle: "short" });

const clock = (text, options) => new Intl.DateTimeFormat(locale, { ...options, hourCycle: "h23" }).format(new Date(text));

// Seconds, from 100 on minutes
export function duration(seconds) {
	if (seconds < 100) return t("time.seconds", { seconds: number(Math.max(1, Math.round(seconds))) });
	return t("time.minutes", { minutes: number(Math.round(seconds / 60)) });
}

export function bytes(value) {
	const power = Math.min(3, Math.floor(Math.log10(Math.max(value, 1)) / 3));
	const unit = ["byte", "kilobyte", "megabyte", "gigabyte"][power];
	return number(value / 1000 ** power, { style: "unit", unit, maximumFractionDigits: power ? 1 : 0 });
}

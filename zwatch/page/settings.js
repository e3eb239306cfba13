export function initSettings() {}

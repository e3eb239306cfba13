export function initCompare() {}

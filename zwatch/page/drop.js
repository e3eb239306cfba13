export function initDrop() {}

export function initKeys() {}

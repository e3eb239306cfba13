export function initVersions() {}

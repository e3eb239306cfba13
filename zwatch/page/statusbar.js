export function initStatusBar() {}

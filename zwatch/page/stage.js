export function initStage() {}

export function initJobs() {}

export function initForm() {}

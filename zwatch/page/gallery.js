export function initGallery() {}

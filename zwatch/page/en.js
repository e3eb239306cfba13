// English: the core of the page. gallery's parts are in en-gallery.js. A pair is [one, other].
export default {};

// Chinese: the history, the detail view, the comparison, the versions and dropped files.
export default {};

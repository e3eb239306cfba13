"""A request and its images, without HTTP: validate, queue, generate, encode, store."""

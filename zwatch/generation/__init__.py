"""A request and its images, without HTTP: checked, queued, generated, encoded, kept."""

"""Making a version from what people have: a published pipeline, a hub's cache, single files, a training run, a LoRA."""

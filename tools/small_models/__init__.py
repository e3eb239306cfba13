"""Training of small Z-Image pipelines on the drawn world."""

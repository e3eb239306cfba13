"""AUTOMATIC1111's web API on top of our own queue: what its clients send and expect, in our words."""

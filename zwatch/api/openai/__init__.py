"""OpenAI's images API on top of our own queue."""

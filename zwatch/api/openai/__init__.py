"""The API for OpenAI clients."""

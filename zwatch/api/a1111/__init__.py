"""The API for clients of AUTOMATIC1111."""

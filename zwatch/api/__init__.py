"""HTTP: one table of calls, their schema, and their handlers."""

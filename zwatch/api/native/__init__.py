"""Our own calls, one module a subject; each has its table of routes."""

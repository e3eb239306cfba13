"""HTTP: requests come in, wait their turn, lease an engine, and go out as images."""

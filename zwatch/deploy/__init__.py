"""What is on disk and what should serve: links, versions, seals. Imports neither torch nor aiohttp."""

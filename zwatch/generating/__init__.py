"""A request for pictures as clients of a running service make it: `zwatch generate`, and the tools of `zwatch mcp`.

Nothing here imports torch, aiohttp or pydantic: the command line starts quickly.
"""

"""`zwatch mcp`: tools for agents, by the Model Context Protocol over standard input and output.

Only here the package `mcp` is imported, which the extra `zwatch[mcp]` installs.
"""

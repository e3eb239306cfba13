"""The HTTP API: the table of calls, the OpenAPI document made from it, and the handlers."""

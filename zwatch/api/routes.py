"""All calls, one module a subject; each has its table of routes."""

import asyncio

from aiohttp import web

from zwatch.api.a1111 import calls as a1111
from zwatch.api.a1111.clients import CLIENTS, Clients
from zwatch.api.native import deploy, generate, history, jobs, login, operations, status
from zwatch.api.openai import calls as openai


def add_routes(app: web.Application) -> None:
    """Add all calls to an application."""
    for module in (generate, jobs, history, openai, a1111, status, deploy, login, operations):
        app.add_routes(module.ROUTES)
    app[CLIENTS] = Clients()
    app[a1111.READERS] = asyncio.Semaphore(a1111.MOST_READERS)

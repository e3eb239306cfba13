"""The calls, one module a subject; each has its table of routes."""

import asyncio

from aiohttp import web

from zwatch.service.a1111.clients import CLIENTS, Clients
from zwatch.service.routes import a1111, admin, generate, history, jobs, login, openai, operations, status


def add_routes(app: web.Application) -> None:
    """Add all calls to an application."""
    for module in (generate, jobs, history, openai, a1111, status, admin, login, operations):
        app.add_routes(module.ROUTES)
    app[CLIENTS] = Clients()
    app[a1111.READERS] = asyncio.Semaphore(a1111.MOST_READERS)

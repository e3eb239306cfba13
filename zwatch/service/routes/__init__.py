"""The calls, one module a subject; each has its table of routes."""

from aiohttp import web

from zwatch.service.routes import admin, generate, history, jobs, login, operations, status


def add_routes(app: web.Application) -> None:
    """Add all calls to an application."""
    for module in (generate, jobs, history, status, admin, login, operations):
        app.add_routes(module.ROUTES)

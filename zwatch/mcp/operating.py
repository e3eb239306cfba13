"""The tools that look at what serves, and those that change it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

from zwatch.client import Service
from zwatch.errors import UsageError
from zwatch.generating.events import Refused
from zwatch.mcp.progress import Meter, in_thread
from zwatch.mcp.schemas import Answer, DeployArguments, Deployed, RollbackArguments

_POLL_SECONDS = 0.5

A = TypeVar("A", bound=Answer)


async def read(service: Service, path: str, model: type[A]) -> A:
    """Return what the service answers to a GET.

    Raises:
        Refused: it refuses.
        UsageError: no service answers.
    """
    return model.model_validate(_accepted(*await in_thread(service.get, path)))


async def change(service: Service, asked: DeployArguments | RollbackArguments, meter: Meter) -> Deployed:
    """Repoint an alias, and return once the version serves. Cancelling only ends the waiting.

    Raises:
        Refused: the version was rejected, which is the reason.
        UsageError: no service answers.
    """
    path, body = "/api/rollback", asked.model_dump()
    if isinstance(asked, DeployArguments):
        path, body = "/api/deploy", {**body, "wait": True}
    async with _followed(service, asked.alias, meter):
        answer = await in_thread(service.post, path, body)
    return Deployed.model_validate(_accepted(*answer))


def _accepted(status: int, body: dict[str, Any]) -> dict[str, Any]:
    if status >= 300:
        raise Refused(body)
    return body


@asynccontextmanager
async def _followed(service: Service, alias: str, meter: Meter) -> AsyncIterator[None]:
    """Report the load of an alias while the block runs."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_report, service, alias, meter)
        yield
        tasks.cancel_scope.cancel()


async def _report(service: Service, alias: str, meter: Meter) -> None:
    while True:
        await anyio.sleep(_POLL_SECONDS)
        try:
            _, status = await in_thread(service.get, "/status")
        except UsageError:
            return  # the call that is followed reports it
        attempt = status.get("aliases", {}).get(alias, {}).get("attempt")
        if attempt is not None and attempt["state"] in ("LOADING", "WARMING"):
            await meter.report(attempt["progress"], 1, f"{attempt['version']} {attempt['state']}")
        else:
            await meter.report(0, 1, "waiting for the service")

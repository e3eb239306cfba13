"""A client that names itself, and all of its jobs: their list, and their events in one stream."""

import asyncio
import re
from typing import Annotated

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.answers import answer, encoded
from zwatch.api.results import JobView, job_view
from zwatch.api.schema import Parameter
from zwatch.api.services import SERVICES
from zwatch.api.streams import send
from zwatch.generation.client_jobs import Follower
from zwatch.generation.fields import invalid
from zwatch.generation.job import client_of_request

HEADER, QUERY = "X-Client-Id", "client"
"""Where a client names itself: in requests for images, and where it asks for its jobs."""
_NAME = re.compile("[A-Za-z0-9._-]{1,64}")
_ClientName = Annotated[str, Field(pattern=f"^{_NAME.pattern}$")]
IN_HEADER = Parameter(
    HEADER, "The client's name: it finds its jobs by it.", _ClientName, example="page-1f6c", place="header"
)
IN_QUERY = Parameter(QUERY, f"The name that the client sends in `{HEADER}`.", _ClientName, example="page-1f6c")

_PAUSE = 0.03
"""Least seconds between two events of one job: a screen shows hardly more, and steps of a small model take less."""
_BATCH = 50
"""Jobs that are encoded before others have a turn on the event loop: a prompt may have 10,000 characters."""


class ClientJobsView(TypedDict):
    """A client's jobs, oldest first."""

    jobs: list[JobView]


def note_client(request: web.Request) -> None:
    """Note the client's name for the jobs that this request creates.

    Raises:
        RequestError: 400, the header is not a name.
    """
    client_of_request.set(client_in_header(request))


def client_in_header(request: web.Request) -> str | None:
    """Return the name that the client gives itself, if it does.

    Raises:
        RequestError: 400, the header is not a name.
    """
    given = request.headers.get(HEADER)
    return None if given is None else _checked(HEADER, given)


def client_in_query(request: web.Request) -> str | None:
    """Return the client whose jobs are asked for, if there is one.

    Raises:
        RequestError: 400, it is not a name.
    """
    given = request.query.get(QUERY)
    return None if given is None else _checked(QUERY, given)


async def list_jobs(request: web.Request) -> web.Response:
    """List a client's jobs."""
    client = client_in_query(request)
    if client is None:
        raise invalid(
            QUERY, f"client is missing: GET /jobs?client=NAME lists the jobs that were sent with {HEADER}: NAME"
        )
    jobs = request.app[SERVICES].queue.jobs.of_client(client)
    for job in jobs:
        if not job.state.is_final:
            job.note_poll()
    body: ClientJobsView = {"jobs": [job_view(job) for job in jobs]}
    return answer(body)


async def send_jobs(request: web.Request, response: web.StreamResponse, name: str) -> None:
    """Send a client's jobs as `jobs`, then each that changes as `job`, until this is cancelled. A preview is sent once."""
    with request.app[SERVICES].queue.jobs.following(name) as client:
        follower = Follower(client)
        coming = client.audience.changes.next()
        await send(response, "jobs", await _encoded_jobs(follower))
        while True:
            await asyncio.shield(coming)
            # In this order: a change while this is sent, or in the pause, is then found in the next round.
            coming = client.audience.changes.next()
            for job, is_new in follower.news():
                await send(response, "job", encoded(job_view(job, with_preview=is_new)))
            await asyncio.sleep(_PAUSE)


async def _encoded_jobs(follower: Follower) -> bytes:
    views = []
    for number, (job, is_new) in enumerate(follower.news(), 1):
        views.append(encoded(job_view(job, with_preview=is_new)))
        if number % _BATCH == 0:
            await asyncio.sleep(0)
    return b'{"jobs": [%b]}' % b", ".join(views)


def _checked(where: str, given: str) -> str:
    if _NAME.fullmatch(given) is None:
        raise invalid(where, f"{where} must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-', got {given[:100]!r}")
    return given

"""State per client: its chosen checkpoint and its jobs.

AUTOMATIC1111 has one user, so options and interruptions are global there. Its clients rely on that: they choose a
checkpoint, then generate without naming it. Here each client has its own state, so that clients do not affect each other.
"""

import base64
from collections import OrderedDict
from typing import NamedTuple
from weakref import WeakKeyDictionary

from aiohttp import web

from zwatch.api.a1111.checkpoints import choice_of, model_of
from zwatch.generation.job import Job
from zwatch.generation.request import PRIMARY
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import VersionKey

MAX_CHOICES = 1000
"""Choices that are remembered; the least recently used is dropped first."""


class Client(NamedTuple):
    """A client: its address, its user name (clients behind one proxy share the address), and its `User-Agent`."""

    address: str
    user: str
    program: str


def client_of(request: web.Request) -> Client:
    """Return which client a call comes from. Some clients without a password send `Authorization: Basic` without credentials."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    user = ""
    if scheme.lower() == "basic":
        try:
            user = base64.b64decode(given, validate=True).decode().partition(":")[0]
        except ValueError:  # not base64, not ASCII, not UTF-8
            user = ""
    return Client(request.remote or "", user, request.headers.get("User-Agent", ""))


class Clients:
    """The chosen checkpoint and the jobs of each client. Used on the event loop only."""

    def __init__(self, max_choices: int = MAX_CHOICES) -> None:
        self._max_choices = max_choices
        self._choices: OrderedDict[Client, VersionKey | str] = OrderedDict()
        self._owners: WeakKeyDictionary[Job, Client] = WeakKeyDictionary()

    def choose(self, client: Client, name: str, engines: EngineRegistry, aliases: tuple[str, ...]) -> None:
        """Remember a checkpoint for a client's later requests. A client that chooses what `current` serves, or an empty
        name, follows `current`, also after the next deploy.

        Raises:
            RequestError: 404, no such checkpoint is loaded.
        """
        choice = choice_of(name, engines, aliases) if name else PRIMARY
        serving = engines.serving(PRIMARY)
        self._choices.pop(client, None)
        if choice != PRIMARY and (serving is None or choice != serving.key):
            self._choices[client] = choice
        if len(self._choices) > self._max_choices:
            self._choices.popitem(last=False)

    def model(self, client: Client, engines: EngineRegistry) -> str:
        """Return the model for a client's request that names none: its choice while that is loaded, else `current`."""
        choice = self._choices.get(client, PRIMARY)
        if isinstance(choice, VersionKey):
            resident = engines.find(choice.version)
            if resident is None or resident.key != choice:
                del self._choices[client]
                return PRIMARY
        if choice != PRIMARY:
            self._choices.move_to_end(client)
        return model_of(choice)

    def own(self, client: Client, job: Job) -> None:
        """Record that a job is this client's."""
        self._owners[job] = client

    def owns(self, client: Client, job: Job) -> bool:
        """Return whether a job is this client's."""
        return self._owners.get(job) == client

    def oldest(self, client: Client) -> Job | None:
        """Return this client's job that is running, or that will run next."""
        own = [job for job, owner in self._owners.items() if owner == client and not job.state.is_final]
        return min(own, key=lambda job: job.created, default=None)


CLIENTS = web.AppKey("clients", Clients)

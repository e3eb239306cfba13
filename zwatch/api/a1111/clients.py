"""State per client: its chosen checkpoint and its jobs.

AUTOMATIC1111 has one user, so options and interruptions are global there. Its clients rely on that: they choose a
checkpoint, then generate without naming it. Here each client has its own state, so that clients do not affect each other.
"""

import base64
from collections import OrderedDict
from collections.abc import Container
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


class Choice(NamedTuple):
    """A client's checkpoint: its name as the client sent it, and the alias or the version that it stands for."""

    name: str
    model: VersionKey | str


class Clients:
    """The chosen checkpoint and the jobs of each client. Used on the event loop only."""

    def __init__(self, max_choices: int = MAX_CHOICES) -> None:
        self._max_choices = max_choices
        self._choices: OrderedDict[Client, Choice] = OrderedDict()
        self._owners: WeakKeyDictionary[Job, Client] = WeakKeyDictionary()

    def choose(
        self,
        client: Client,
        name: str,
        engines: EngineRegistry,
        aliases: Container[str],
        *,
        among_others: bool = False,
    ) -> None:
        """Remember a checkpoint for a client's later requests. A client that chooses what `current` serves, or an empty
        name, follows `current`, also after the next deploy. It still does if it sends that name again `among_others`:
        programs that store all options send them whenever one of them is changed.

        Raises:
            RequestError: 404, no such checkpoint is loaded.
        """
        known = self._choices.get(client)
        if among_others and known is not None and known == Choice(name, PRIMARY):
            return
        model = choice_of(name, engines, aliases) if name else PRIMARY
        serving = engines.serving(PRIMARY)
        if serving is not None and model == serving.key:
            model = PRIMARY
        self._choices.pop(client, None)
        if name not in ("", PRIMARY):
            self._choices[client] = Choice(name, model)
        if len(self._choices) > self._max_choices:
            self._choices.popitem(last=False)

    def model(self, client: Client, engines: EngineRegistry, aliases: Container[str]) -> str:
        """Return the model for a client's request that names none: its choice while that is there, else `current`."""
        choice = self._choices.get(client)
        if choice is None:
            return PRIMARY
        if isinstance(choice.model, VersionKey):
            resident = engines.find(choice.model.version)
            if resident is None or resident.key != choice.model:
                del self._choices[client]
                return PRIMARY
        elif choice.model not in aliases:  # its link is gone
            del self._choices[client]
            return PRIMARY
        self._choices.move_to_end(client)
        return model_of(choice.model)

    def own(self, client: Client, job: Job) -> None:
        """Record that a job is this client's."""
        self._owners[job] = client

    def owns(self, client: Client, job: Job) -> bool:
        """Return whether a job is this client's."""
        return self._owners.get(job) == client

    def active(self, client: Client) -> list[Job]:
        """Return this client's jobs that run or wait: first the one that runs, or that will run next."""
        own = [job for job, owner in self._owners.items() if owner == client and not job.state.is_final]
        return sorted(own, key=lambda job: -job.age)


CLIENTS = web.AppKey("clients", Clients)

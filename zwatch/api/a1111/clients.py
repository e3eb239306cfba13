"""Who a call comes from, so that one client's choices and interruptions are not another's.

AUTOMATIC1111 has one user: a checkpoint that is chosen in the options, and an interruption, are everybody's. Clients rely
on that within themselves (they choose, then generate without naming anything), so each has its own here.
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

MOST_CHOICES = 1000
"""Choices that are remembered; the one not used for longest goes first."""


class Client(NamedTuple):
    """A program at an address, and the user name that it gives, if any. A name behind one proxy is still one's own."""

    address: str
    user: str
    program: str


def client_of(request: web.Request) -> Client:
    """Say who a call comes from. A header without credentials, as clients without a password send it, is fine."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    user = ""
    if scheme.lower() == "basic":
        try:
            user = base64.b64decode(given, validate=True).decode().partition(":")[0]
        except ValueError:  # not base64, not ASCII, not UTF-8
            user = ""
    return Client(request.remote or "", user, request.headers.get("User-Agent", ""))


class Clients:
    """What each client has chosen, and which jobs are its own. Lives on the event loop."""

    def __init__(self) -> None:
        self._choices: OrderedDict[Client, VersionKey | str] = OrderedDict()
        self._owners: WeakKeyDictionary[Job, Client] = WeakKeyDictionary()

    def choose(self, client: Client, name: str, engines: EngineRegistry, aliases: tuple[str, ...]) -> None:
        """Remember a checkpoint for a client's later requests. What `current` serves anyway, or no name at all, is no
        choice: whoever picks that follows the link also after the next deploy.

        Raises:
            RequestError: 404, no such checkpoint is loaded.
        """
        choice = choice_of(name, engines, aliases) if name else PRIMARY
        serving = engines.serving(PRIMARY)
        self._choices.pop(client, None)
        if choice != PRIMARY and (serving is None or choice != serving.key):
            self._choices[client] = choice
        if len(self._choices) > MOST_CHOICES:
            self._choices.popitem(last=False)

    def model(self, client: Client, engines: EngineRegistry) -> str:
        """Return what a client's request is for that names nothing: its choice while that is loaded, else `current`."""
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
        """Note whose job it is."""
        self._owners[job] = client

    def owns(self, client: Client, job: Job) -> bool:
        """Say whether a job is this client's."""
        return self._owners.get(job) == client

    def oldest(self, client: Client) -> Job | None:
        """Return the job of this client's that runs, or that is the next to run."""
        own = [job for job, owner in self._owners.items() if owner == client and not job.state.is_final]
        return min(own, key=lambda job: job.created, default=None)


CLIENTS = web.AppKey("clients", Clients)

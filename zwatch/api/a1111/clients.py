"""State per client: its chosen checkpoint and its jobs.

AUTOMATIC1111 has one user, so options and interruptions are global there. Its clients rely on that: they choose a
checkpoint, then generate without naming it. Here each client has its own state, so that clients do not affect each other.
"""

import base64
from collections import OrderedDict
from collections.abc import Collection, Container
from typing import NamedTuple
from weakref import WeakKeyDictionary

from aiohttp import web

from zwatch.api.a1111.checkpoints import choice_of, model_of
from zwatch.deploy.shares import alias_of_key, parse_share, share_key
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
    """A client's checkpoint: its name as the client sent it, and what it stands for: an alias, the key of a share (whose name changes
    with its percentage), or a version."""

    name: str
    model: VersionKey | str

    @property
    def follows(self) -> bool:
        """Whether it stands for `current` or a share, to whose next version and name the client goes along."""
        return isinstance(self.model, str) and (self.model == PRIMARY or alias_of_key(self.model) is not None)


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
        name, follows `current`, also after the next deploy; one that chooses a share follows that. It still does if it sends that
        name again `among_others`: programs that store all options send them whenever one of them is changed.

        Raises:
            RequestError: 404, no such checkpoint is loaded.
        """
        known = self._choices.get(client)
        if among_others and known is not None and known.name == name and known.follows:
            return
        model = choice_of(name, engines, aliases) if name else PRIMARY
        serving = engines.serving(PRIMARY)
        if serving is not None and model == serving.key:
            model = PRIMARY
        self._choices.pop(client, None)
        if name not in ("", PRIMARY):
            share = parse_share(model) if isinstance(model, str) else None
            self._choices[client] = Choice(name, model if share is None else share_key(share.alias))
        if len(self._choices) > self._max_choices:
            self._choices.popitem(last=False)

    def model(self, client: Client, engines: EngineRegistry, aliases: Collection[str]) -> str:
        """Return the model for a client's request that names none: its choice while that is there, else `current`. `aliases` has the
        names of aliases and shares."""
        choice = self._choices.get(client)
        if choice is None:
            return PRIMARY
        if (model := _present(choice.model, engines, aliases)) is None:
            del self._choices[client]
            return PRIMARY
        self._choices.move_to_end(client)
        return model

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


def _present(chosen: VersionKey | str, engines: EngineRegistry, aliases: Collection[str]) -> str | None:
    """Return the present name of what was chosen; None if it is not there any more."""
    if isinstance(chosen, VersionKey):
        resident = engines.find(chosen.version)
        return None if resident is None or resident.key != chosen else model_of(chosen)
    if (alias := alias_of_key(chosen)) is not None:
        shares = (name for name in aliases if (share := parse_share(name)) is not None and share.alias == alias)
        return next(shares, None)
    return chosen if chosen in aliases else None


CLIENTS = web.AppKey("clients", Clients)

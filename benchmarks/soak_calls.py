"""One client's calls, counted and judged, for soak.py: which failed, and which pictures a version drew that cannot have."""

import asyncio
import io
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Self

import aiohttp
from common import Json
from PIL import Image

PROMPTS = ("a cat wearing sunglasses", "a red house by the sea", "一只戴墨镜的猫")
SEEDS = (1, 2)
MAKING = (
    "picture",
    "pictures",
    "other picture",
    "named picture",
    "changed picture",
    "comparison",
    "stream",
    "OpenAI",
    "OpenAI stream",
    "A1111 picture",
)
"""Kinds of calls that make a job and wait for it."""
LONGEST = 300.0
"""Seconds that one call may take."""


class Failure(Exception):
    """A call was answered in another way than it should."""


@dataclass
class Link:
    """A wish that a version serves: when it was made, and when it was seen to serve."""

    begun: float
    version: str | None
    seen: float = float("inf")


@dataclass
class Drawn:
    """A picture, or several of one request: by which version, and when the request was sent and answered."""

    kind: str
    begun: float
    ended: float
    version: str


class Timeline:
    """Which versions may have drawn a request's pictures: the one seen to serve before it, and each linked until its end."""

    def __init__(self, version: str) -> None:
        self.links = [Link(0.0, version, 0.0)]
        self.waiting: list[Drawn] = []
        self.wrong: list[str] = []

    def judge(self) -> None:
        """Judge the requests that have ended. To be called when no wish is open."""
        for one in self.waiting:
            allowed = self._allowed(one)
            if None not in allowed and one.version not in allowed:
                self.wrong.append(
                    f"{one.kind}: drawn by {one.version}, while only {sorted(map(str, allowed))} may have served"
                )
        self.waiting.clear()
        del self.links[:-50]  # no request takes as long as fifty flips

    def _allowed(self, one: Drawn) -> set[str | None]:
        before = max((at for at, link in enumerate(self.links) if link.seen <= one.begun), default=0)
        return {link.version for link in self.links[before:] if link.begun <= one.ended}


@dataclass
class Book:
    """What all clients did so far."""

    digests: dict[str, str]
    timeline: Timeline
    pictures: dict[tuple[str, str, int], bytes] = field(default_factory=dict)
    """The pixels of (version, prompt, seed) at the version's own size."""
    calls: Counter[str] = field(default_factory=Counter)
    statuses: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    provoked: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    wrong_pictures: list[str] = field(default_factory=list)
    compared: int = 0
    drawn: Counter[str] = field(default_factory=Counter)
    latencies: list[tuple[str, float]] = field(default_factory=list)
    """Of the calls since the last sample."""
    unloaded: list[tuple[float, float]] = field(default_factory=list)
    """When nothing was loaded, because that was asked for."""
    doing: str = "before the traffic"
    """What the operator does at present."""
    tell: Callable[[str], None] = lambda _text: None
    """Called with each failure and each wrong picture at once: a run that is cut off has told them."""

    @property
    def jobs(self) -> int:
        """How many jobs were made, about: those of clients that left are counted, though some left too early."""
        made = sum(self.statuses[kind]["200"] for kind in MAKING) + self.statuses["job"]["202"]
        return made + self.calls["leaving"]

    def fails(self, kind: str, error: object, begun: float | None = None) -> None:
        """Note a failure, and how long it took where `begun` says when the call was sent."""
        lasted = "" if begun is None else f", after {time.monotonic() - begun:.2f} s"
        self.failures.append(f"{clock()} {self.doing}, {kind}{lasted}: {error}"[:500])
        self.tell(f"FAILED {self.failures[-1]}")

    def wrong(self, text: str) -> None:
        """Note a picture that is not what it should be."""
        self.wrong_pictures.append(f"{clock()} {self.doing}, {text}")
        self.tell(f"WRONG {self.wrong_pictures[-1]}")

    def was_unloaded(self, begun: float, ended: float) -> bool:
        """Say whether nothing was loaded at some moment between two."""
        return any(first <= ended and begun <= last for first, last in self.unloaded)


class Client:
    """A client of one service, from an address of its own."""

    def __init__(self, url: str, token: str, book: Book, chance: random.Random) -> None:
        self.url, self.token, self.book, self.chance = url, token, book, chance
        self.is_unique = chance.random() < 0.3
        address = f"127.{chance.randrange(1, 255)}.{chance.randrange(256)}.{chance.randrange(1, 255)}"
        # A program on a machine of its own, or one of many behind one address.
        self._local = (address, 0) if self.is_unique else None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = self._made()
        return self

    async def renew(self) -> None:
        """Close all connections."""
        assert self._session is not None
        before, self._session = self._session, self._made()
        await before.close()

    def _made(self) -> aiohttp.ClientSession:
        headers = {"Authorization": f"Bearer {self.token}"}
        if self.is_unique:
            headers["User-Agent"] = f"soak/{self.chance.getrandbits(40):x}"
            headers["X-Client-Id"] = f"c{self.chance.getrandbits(40):x}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, local_addr=self._local), headers=headers,
            timeout=aiohttp.ClientTimeout(total=LONGEST),
        )  # fmt: skip

    async def __aexit__(self, *error: object) -> None:
        assert self._session is not None
        await self._session.close()

    @asynccontextmanager
    async def open(self, kind: str, method: str, path: str, *, expected: tuple[int, ...] = (200,), **sent: Any) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        """Make a call and yield its answer; note how long it took, and whether it is one of the expected.

        Raises:
            Failure: it is not; noted already.
        """
        assert self._session is not None
        begun = time.monotonic()
        self.book.calls[kind] += 1
        try:
            async with self._session.request(method, self.url + path, **sent) as response:
                self.book.statuses[kind][str(response.status)] += 1
                if response.status not in expected:
                    self._judge(kind, f"{method} {path}", begun, expected, response, await response.text())
                yield response
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.book.fails(kind, f"{method} {path}: expected {expected}, came {type(error).__name__}: {error}", begun)
            raise Failure from error
        self.book.latencies.append((kind, time.monotonic() - begun))

    def _judge(self, kind: str, call: str, begun: float, expected: tuple[int, ...], answer: aiohttp.ClientResponse, text: str) -> None:  # fmt: skip
        if answer.status == 503 and "model_not_loaded" in text and self.book.was_unloaded(begun, time.monotonic()):
            self.book.provoked["503 while unloaded"] += 1
            raise Failure
        self.book.fails(
            kind,
            f"{call}: expected {expected}, came {answer.status} {text[:300]} [{answer.headers.get('X-Request-Id')}]",
            begun,
        )
        raise Failure

    async def call(self, kind: str, method: str, path: str, **sent: Any) -> tuple[aiohttp.ClientResponse, bytes]:
        """Return the answer and its body."""
        async with self.open(kind, method, path, **sent) as response:
            return response, await response.read()

    async def json(self, kind: str, method: str, path: str, **sent: Any) -> Json:
        """Return the JSON of an answer."""
        found: Json = json.loads((await self.call(kind, method, path, **sent))[1])
        return found

    async def stream(self, kind: str, method: str, path: str, **sent: Any) -> list[tuple[str, Json]]:
        """Return all events of a stream, (name, data)."""
        async with self.open(kind, method, path, **sent) as response:
            return [one async for one in events(response)]

    async def leaves(self, kind: str, method: str, path: str, seconds: float, **sent: Any) -> None:
        """Make a call and close the connection after some seconds, whatever has come by then."""
        assert self._session is not None
        begun = time.monotonic()
        self.book.calls[kind] += 1
        try:
            async with asyncio.timeout(seconds):
                async with self._session.request(method, self.url + path, **sent) as response:
                    await response.read()
        except TimeoutError:
            pass
        except (aiohttp.ClientError, OSError) as error:
            self.book.fails(kind, f"{method} {path}: {type(error).__name__}: {error}", begun)


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, Json]]:
    """Yield the events of a stream as they come."""
    buffered, name = b"", "message"
    async for piece in response.content.iter_any():
        *lines, buffered = (buffered + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"event: "):
                name = line[7:].decode()
            elif line.startswith(b"data: "):
                yield name, json.loads(line[6:])


class Judge:
    """Holds pictures against what they should be."""

    def __init__(self, book: Book) -> None:
        self.book = book

    def drew(self, kind: str, begun: float, version: str, digest: str, named: str = "current") -> None:
        """Note which version answered a request."""
        self.book.drawn[version] += 1
        if self.book.digests.get(version) != digest:
            self.book.wrong(f"{kind}: {version} has another digest than {digest[:16]}")
        if named == "current":
            self.book.timeline.waiting.append(Drawn(kind, begun, time.monotonic(), version))
        elif version != named:
            self.book.wrong(f"{kind}: asked for {named}, drawn by {version}")

    async def look(self, kind: str, file: bytes, version: str, prompt: str, seed: int) -> None:
        """Compare a PNG's pixels, and the version in it, with what the version drew before the soak."""
        wanted = self.book.pictures.get((version, prompt, seed))
        told, pixels = await asyncio.to_thread(opened, file)
        if told != version:
            self.book.wrong(f"{kind}: the file says {told}, the answer {version}")
        if wanted is not None:
            self.book.compared += 1
            if pixels != wanted:
                self.book.wrong(f"{kind}: other pixels than {version} draws of {prompt!r}, {seed}")


def clock() -> str:
    """Return the time as the service's log has it."""
    return f"{datetime.now(UTC).astimezone():%H:%M:%S}"


def opened(file: bytes) -> tuple[str | None, bytes]:
    """Return the version that a PNG names, and its pixels."""
    with Image.open(io.BytesIO(file)) as image:
        return getattr(image, "text", {}).get("zwatch_version"), image.convert("RGB").tobytes()

"""The history: pages of pictures, single pictures, and their deletion."""

from typing import Annotated, NotRequired

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.answers import answer
from zwatch.api.bodies import read_request, received_image
from zwatch.api.client_key import client_key
from zwatch.api.pieces import SHARED
from zwatch.api.results import disposition
from zwatch.api.schema import Number, Request, ShareName, VersionName
from zwatch.api.services import SERVICES
from zwatch.errors import RequestError
from zwatch.generation.fields import Whole, invalid
from zwatch.generation.history import History
from zwatch.generation.kept_image import VotesView
from zwatch.generation.picture_settings import picture_settings as settings_in
from zwatch.generation.request import SEEDS, ImageFormat, UserName
from zwatch.generation.search_index import Query

DEFAULT_LIMIT = 50
MAX_LIMIT = 500
MAX_OFFSET = 10**9 - 1
MAX_QUERY = 500
"""Most characters of a search."""
_KEPT = {
    "Cache-Control": "private, max-age=31536000, immutable",  # names are never reused
    "X-Content-Type-Options": "nosniff",
}


class Deleted(TypedDict):
    """How many pictures were deleted; `name` if one was named."""

    deleted: Number
    name: NotRequired[str]


class VoteRequest(Request):
    """A vote: 1 for, -1 against, 0 takes an earlier one back. Of one client only the last counts, known as for shares."""

    vote: Annotated[int, Whole(-1, 1), Field(examples=[1])]
    user: UserName = ""


class Voted(TypedDict):
    """A picture with its votes."""

    name: str
    version: VersionName | None
    share: ShareName | None
    votes: VotesView


async def page(request: web.Request) -> web.Response:
    """List images, newest first."""
    limit = _whole(request, "limit", DEFAULT_LIMIT, 1, MAX_LIMIT)
    offset = _whole(request, "offset", 0, 0, MAX_OFFSET)
    found = await _history(request).page(limit, request.query.get("before"), _query(request), offset)
    if (voting := request.app[SERVICES].voting) is not None:
        await voting.add_to(found["images"], _viewer(request))
    return answer(found)


async def picture(request: web.Request) -> web.Response:
    """Return an image file."""
    name = request.match_info["name"]
    body = await request.app[SHARED].body(name, _history(request).read)
    headers = {**_KEPT, **disposition(name)}
    return web.Response(body=body, content_type=ImageFormat.of_name(name).media_type, headers=headers)


async def vote(request: web.Request) -> web.Response:
    """Set or take back the client's vote on a picture."""
    _history(request)
    voting = request.app[SERVICES].voting
    assert voting is not None  # where there is a history
    wanted = await read_request(request, VoteRequest)
    picture = await voting.vote(request.match_info["name"], _client(request, wanted.user), wanted.vote)
    body: Voted = {
        "name": picture["name"],
        "version": picture["version"],
        "share": picture["share"],
        "votes": picture["votes"],
    }
    return answer(body)


async def thumbnail(request: web.Request) -> web.Response:
    """Return a small copy of an image."""
    found = await _history(request).thumbnail(request.match_info["name"])
    return web.Response(body=found.file, content_type=found.media_type, headers=_KEPT)


async def delete(request: web.Request) -> web.Response:
    """Delete an image."""
    name = request.match_info["name"]
    await _history(request).delete(name)
    body: Deleted = {"deleted": 1, "name": name}
    return answer(body)


async def clear(request: web.Request) -> web.Response:
    """Delete all images."""
    if name := next(iter(request.query), None):
        raise invalid(
            name[:100], "DELETE /history deletes all pictures, and takes no parameters: delete each by its name"
        )
    body: Deleted = {"deleted": await _history(request).clear()}
    return answer(body)


async def picture_settings(request: web.Request) -> web.Response:
    """Return the settings in an image file, which is the body."""
    async with received_image(request) as file:
        return answer(await request.app[SERVICES].bridge.run("encode", settings_in, file))


def _whole(request: web.Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query.get(name, str(default))
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1
    if not least <= value <= most:
        raise invalid(name, f"{name} must be from {least} to {most}, got {text[:60]!r}")
    return value


def _client(request: web.Request, user: str = "") -> str:
    key = client_key(request, "", user=user, is_named=False)
    assert key is not None  # only a request for images may have none
    return key


def _viewer(request: web.Request) -> str:
    """Return the client whose own votes are marked in a list. A header that is no name refuses no list."""
    try:
        return _client(request)
    except RequestError:
        return request.remote or "-"


def _query(request: web.Request) -> Query:
    words, version, seed = (request.query.get(name, "") for name in ("q", "version", "seed"))
    for name, text in (("q", words), ("version", version)):
        if len(text) > MAX_QUERY:
            raise invalid(name, f"{name} may have {MAX_QUERY} characters, got {len(text)}")
    if seed and not (seed.isascii() and seed.isdigit() and len(seed) < 20 and int(seed) < SEEDS):
        raise invalid("seed", f"seed must be a whole number from 0 to {SEEDS - 1}, got {seed[:60]!r}")
    return Query.of(words, version, int(seed) if seed else None)


def _history(request: web.Request) -> History:
    history = request.app[SERVICES].history
    if history is None:
        raise RequestError("not_found", "the history is off (--no-history): images are not kept")
    return history

"""The page's files: read once at the start and answered from memory, so that they wait for no disk and for no import of torch."""

import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from zwatch.errors import RequestError

DIRECTORY = Path(__file__).parent.parent / "page"
INDEX = "index.html"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The media types of the files that the page consists of, by suffix; others are not served."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # a browser keeps the file, and asks each time whether it is still the same
    "Vary": "Accept-Encoding",
}
"""Sent with every file of the page, also with a 304."""
_NO_GZIP = re.compile(r"q=0(\.0*)?")


@dataclass(frozen=True, slots=True)
class PageFile:
    """One file, as it is and compressed. Each form has an entity tag of its own, as HTTP wants it."""

    media_type: str
    plain: bytes
    compressed: bytes
    tag: str

    def form(self, *, compress: bool) -> tuple[bytes, str, dict[str, str]]:
        """Return the body, its entity tag and its headers."""
        if not compress:
            return self.plain, self.tag, {}
        return self.compressed, f"{self.tag}-gzip", {"Content-Encoding": "gzip"}


def read_page(directory: Path) -> dict[str, PageFile]:
    """Return the page's files by name; none if there is no such directory."""
    found = {}
    for path in sorted(directory.glob("*")):
        if path.suffix in KINDS and path.is_file():
            plain = path.read_bytes()
            tag = hashlib.blake2b(plain, digest_size=16).hexdigest()
            found[path.name] = PageFile(KINDS[path.suffix], plain, gzip.compress(plain, mtime=0), tag)
    return found


PAGE: web.AppKey[Mapping[str, PageFile]] = web.AppKey("page")
"""The page's files by name."""


async def index(request: web.Request) -> web.Response:
    """Return the page. Clients also ask for `/` to find out whether the service is there."""
    return _answer(request, INDEX)


async def file(request: web.Request) -> web.Response:
    """Return one of the page's files."""
    return _answer(request, request.match_info["name"])


def add_page(app: web.Application, directory: Path = DIRECTORY) -> None:
    """Add the page's routes to an application."""
    app[PAGE] = read_page(directory)
    app.router.add_get("/", index)
    app.router.add_get("/page/{name}", file)


def _answer(request: web.Request, name: str) -> web.Response:
    found = request.app[PAGE].get(name)
    if found is None:
        raise RequestError("not_found", f"the page has no file {name[:100]!r}")
    body, tag, headers = found.form(compress=accepts_gzip(request.headers.get("Accept-Encoding", "")))
    if any(known.value in (tag, "*") for known in request.if_none_match or ()):
        response = web.Response(status=304, headers=HEADERS)
    else:
        response = web.Response(body=body, headers={**HEADERS, **headers, "Content-Type": found.media_type})
    response.etag = tag
    return response


def accepts_gzip(accepted: str) -> bool:
    """Return whether a client with this `Accept-Encoding` takes gzip."""
    for part in accepted.lower().split(","):
        coding, _, parameters = part.partition(";")
        if coding.strip() == "gzip":
            return _NO_GZIP.fullmatch(parameters.replace(" ", "")) is None
    return False

"""The page's files: read once at the start and answered from memory, so that they wait for no disk and for no import of torch.

The first paint takes one request: the styles are put into `index.html`, which names the other files by a path with a digest of
them all. A browser keeps those for good; another version of the page has other paths.
"""

import base64
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
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}
"""Sent with every file of the page, also with a 304, beside `Content-Security-Policy` and `Cache-Control`."""
POLICY = (
    "default-src 'none'; script-src 'self'; style-src {styles}; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy; its styles are named by their digests."""
_ASK_AGAIN = "no-cache"
"""A browser keeps the file, and asks each time whether it is still the same."""
_KEEP = "public, max-age=31536000, immutable"
_LINKED = re.compile(r'<link rel="stylesheet" href="/page/([\w.-]+)">\n?')
_INLINE = re.compile(b"<style>(.*?)</style>", re.DOTALL)
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


@dataclass(frozen=True, slots=True)
class Page:
    """The page's files by name, the digest of them all, and the Content-Security-Policy that fits their styles."""

    files: Mapping[str, PageFile]
    digest: str
    policy: str


def read_page(directory: Path) -> Page:
    """Read the page; it has no files if there is no such directory."""
    texts = {
        path.name: path.read_bytes() for path in sorted(directory.glob("*")) if path.suffix in KINDS and path.is_file()
    }
    digest = _digest(b"".join(name.encode() + text for name, text in texts.items()))
    if INDEX in texts:
        texts[INDEX] = _composed(texts, digest)
    files = {
        name: PageFile(KINDS[Path(name).suffix], text, gzip.compress(text, mtime=0), _digest(text))
        for name, text in texts.items()
    }
    return Page(files, digest, _policy(texts.get(INDEX, b"")))


def _composed(texts: Mapping[str, bytes], digest: str) -> bytes:
    """Return `index.html` with its styles in it, and the paths of the other files with the digest in them."""
    index = _LINKED.sub(lambda link: f"<style>{texts[link[1]].decode()}</style>\n", texts[INDEX].decode())
    return index.replace('="/page/', f'="/page/{digest}/').encode()


def _policy(index: bytes) -> str:
    """Return the policy that allows the styles in a page, each by its digest, and no others."""
    digests = (base64.b64encode(hashlib.sha256(style).digest()).decode() for style in _INLINE.findall(index))
    return POLICY.format(styles=" ".join(f"'sha256-{one}'" for one in digests) or "'none'")


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=16).hexdigest()


PAGE: web.AppKey[Page] = web.AppKey("page")


async def index(request: web.Request) -> web.Response:
    """Return the page. Clients also ask for `/` to find out whether the service is there."""
    return _answer(request, INDEX)


async def file(request: web.Request) -> web.Response:
    """Return one of the page's files."""
    return _answer(request, request.match_info["name"], request.match_info.get("digest"))


def add_page(app: web.Application, directory: Path = DIRECTORY) -> None:
    """Add the page's routes to an application."""
    app[PAGE] = read_page(directory)
    app.router.add_get("/", index)
    app.router.add_get("/page/{name}", file)
    app.router.add_get("/page/{digest}/{name}", file)


def _answer(request: web.Request, name: str, digest: str | None = None) -> web.Response:
    page = request.app[PAGE]
    found = page.files.get(name)
    if found is None:
        raise RequestError("not_found", f"the page has no file {name[:100]!r}")
    body, tag, headers = found.form(compress=accepts_gzip(request.headers.get("Accept-Encoding", "")))
    # A page from before an upgrade may ask with its own digest: what it gets is not kept under that path.
    caching = {"Cache-Control": _KEEP if digest == page.digest else _ASK_AGAIN}
    common = {**HEADERS, "Content-Security-Policy": page.policy, **caching}
    if any(known.value in (tag, "*") for known in request.if_none_match or ()):
        response = web.Response(status=304, headers=common)
    else:
        response = web.Response(body=body, headers={**common, **headers, "Content-Type": found.media_type})
    response.etag = tag
    return response


def accepts_gzip(accepted: str) -> bool:
    """Return whether a client with this `Accept-Encoding` takes gzip."""
    for part in accepted.lower().split(","):
        coding, _, parameters = part.partition(";")
        if coding.strip() == "gzip":
            return _NO_GZIP.fullmatch(parameters.replace(" ", "")) is None
    return False

"""The page's files: how they are served, and what they may be."""

import asyncio
import base64
import gzip
import hashlib
import re

import aiohttp
import pytest

from zwatch.api.page import DIRECTORY, HEADERS, INDEX, KINDS, accepts_gzip, read_page

MOST_BYTES = 150_000
"""Of all files that load at the start, together, as they are."""
MOST_LATER = 60_000
"""Of all others together: each is loaded by `import()` at its first use."""
_STATIC = re.compile(
    r"""^import\s[^(]*?["']\./([\w.-]+)["'];|new URL\("([\w.-]+)", import\.meta\.url\)|="/page/([\w.-]+)\"""",
    re.MULTILINE,
)
"""The file that an import, a worker or an element of the page names."""
POLICY = {
    "default-src": "'none'", "script-src": "'self'", "img-src": "'self' data: blob:",
    "connect-src": "'self'", "base-uri": "'none'", "form-action": "'none'", "frame-ancestors": "'none'",
}  # fmt: skip


@pytest.fixture
async def lonely(start, models):
    """A service with nothing to load: the page needs none of it."""
    (models / "current").unlink()
    async with start() as client:
        yield client


@pytest.fixture
async def raw():
    """A session that does not decompress."""
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        yield session


def loaded_at_start():
    """Return the names of the files that a browser loads without any use of the page."""
    found, names = set(), [INDEX]
    while names:
        name = names.pop()
        if name not in found:
            found.add(name)
            text = (DIRECTORY / name).read_text()
            names += [next(filter(None, groups)) for groups in _STATIC.findall(text)]
    return found


def test_what_is_loaded_later_is_named_by_an_import_of_its_own():
    """A file that nothing names is forgotten; one that is named both ways would be loaded at the start after all."""
    at_start = loaded_at_start()
    assert {INDEX, "main.js", "style.css", "icon.svg", "worker.js", "strings.js"} <= at_start
    text = "".join(path.read_text() for path in DIRECTORY.glob("*.js"))
    by_use = set(re.findall(r'import\("\./([\w.-]+)"\)', text))
    assert by_use
    assert not by_use & at_start
    later = {path.name for path in DIRECTORY.iterdir()} - at_start
    reached, names = set(), [*by_use]
    while names:
        name = names.pop()
        if name not in reached:
            reached.add(name)
            names += [next(filter(None, groups)) for groups in _STATIC.findall((DIRECTORY / name).read_text())]
    assert later <= reached


def test_the_page_is_small_and_has_no_other_kinds_of_files():
    files = [path for path in DIRECTORY.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= KINDS.keys()
    assert all(path.parent == DIRECTORY for path in files), "only files directly in the directory are served"
    at_start = loaded_at_start()
    sizes = {path.name: path.stat().st_size for path in files}
    assert sum(size for name, size in sizes.items() if name in at_start) < MOST_BYTES
    assert sum(size for name, size in sizes.items() if name not in at_start) < MOST_LATER
    assert INDEX in read_page(DIRECTORY).files


async def test_every_file_is_served_with_its_type_and_the_strict_headers(lonely, raw):
    page = read_page(DIRECTORY)
    kept = f"/page/{page.digest}"
    paths = [("/", INDEX), *((f"{folder}/{name}", name) for name in page.files for folder in ("/page", kept))]
    for path, name in paths:
        async with raw.get(lonely.url + path, headers={"Accept-Encoding": "identity"}) as response:
            assert response.status == 200
            if name != INDEX:
                assert await response.read() == (DIRECTORY / name).read_bytes()
            assert response.headers["Content-Type"] == KINDS["." + name.rpartition(".")[2]]
            assert "Content-Encoding" not in response.headers
            assert {name: response.headers[name] for name in HEADERS} == HEADERS
            assert ("immutable" in response.headers["Cache-Control"]) == path.startswith(kept)


async def test_the_first_paint_takes_one_request(lonely):
    async with lonely.http.get(lonely.url + "/") as response:
        text = await response.text()
    assert '<link rel="stylesheet"' not in text
    styles = re.findall("<style>(.*?)</style>", text, re.DOTALL)
    sources = re.findall(r'stylesheet" href="/page/(.*?)"', (DIRECTORY / INDEX).read_text())
    assert styles == [(DIRECTORY / name).read_text() for name in sources]
    assert len(styles) == len(list(DIRECTORY.glob("*.css")))
    for name, style in zip(sources, styles, strict=True):
        text = text.replace(f"<style>{style}</style>", f'<link rel="stylesheet" href="/page/{name}">')
    digest = read_page(DIRECTORY).digest
    assert text.replace(f"/page/{digest}/", "/page/") == (DIRECTORY / INDEX).read_text(), "nothing else is changed"


async def test_files_named_by_the_index_are_kept_by_a_browser_until_the_page_changes(lonely, tmp_path):
    async with lonely.http.get(lonely.url + "/") as response:
        assert response.headers["Cache-Control"] == "no-cache"
        paths = re.findall(r'="(/page/.*?)"', await response.text())
    assert len(paths) == 2
    for path in paths:
        async with lonely.http.get(lonely.url + path) as response:
            assert response.status == 200
            assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"
    async with lonely.http.get(f"{lonely.url}/page/{'0' * 32}/main.js") as response:
        assert (response.status, response.headers["Cache-Control"]) == (200, "no-cache")
    digests = set()
    for text in ("a", "b"):
        (tmp_path / "main.js").write_text(text)
        digests.add(read_page(tmp_path).digest)
    assert len(digests) == 2


async def test_the_policy_allows_nothing_from_elsewhere_and_no_inline_style_but_the_page_s_own(lonely):
    async with lonely.http.get(lonely.url + "/") as response:
        given = response.headers["Content-Security-Policy"]
        styles = re.findall("<style>(.*?)</style>", await response.text(), re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(style.encode()).digest()).decode() for style in styles]
    rules = dict(rule.strip().split(" ", 1) for rule in given.split(";"))
    assert rules.pop("style-src") == " ".join(f"'sha256-{one}'" for one in hashes)
    assert rules == POLICY


async def test_a_client_that_takes_gzip_gets_it_with_a_tag_of_its_own(lonely, raw):
    tags = set()
    for accepted, encoding in (("gzip, deflate, br", "gzip"), ("identity", None)):
        async with raw.get(lonely.url + "/", headers={"Accept-Encoding": accepted}) as response:
            body = await response.read()
            assert response.headers.get("Content-Encoding") == encoding
            assert (gzip.decompress(body) if encoding else body) == read_page(DIRECTORY).files[INDEX].plain
            assert response.headers["Vary"] == "Accept-Encoding"
            tags.add(response.headers["ETag"])
    assert len(tags) == 2


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
async def test_a_file_that_the_browser_has_is_not_sent_again(lonely, raw, encoding):
    headers = {"Accept-Encoding": encoding}
    async with raw.get(lonely.url + "/", headers=headers) as response:
        tag = response.headers["ETag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        async with raw.get(lonely.url + "/", headers={**headers, "If-None-Match": known}) as response:
            assert (response.status, await response.read(), response.headers["ETag"]) == (304, b"", tag)
            assert response.headers["Cache-Control"] == "no-cache"
            assert "Content-Encoding" not in response.headers
    async with raw.get(lonely.url + "/", headers={**headers, "If-None-Match": '"other"'}) as response:
        assert response.status == 200


async def test_what_the_page_does_not_have_is_a_404(lonely):
    for name in ("nothing.js", "index.html.gz", "..%2Fapp.py", "%2E%2E%2Fapp.py", ".", "__init__.py", "\u2603.js"):
        async with lonely.http.get(f"{lonely.url}/page/{name}", allow_redirects=False) as response:
            assert response.status == 404, name
            assert (await response.json())["error"]["code"] == "not_found"


async def test_other_methods_answer_as_for_every_call(lonely):
    async with lonely.http.head(lonely.url + "/") as response:
        assert (response.status, await response.read()) == (200, b"")
        assert int(response.headers["Content-Length"]) > 0
    async with lonely.http.options(lonely.url + "/") as response:
        assert (response.status, response.headers["Allow"]) == (204, "GET, HEAD, OPTIONS")
    async with lonely.http.post(lonely.url + "/page/index.html") as response:
        assert response.status == 405


async def test_the_page_needs_no_token_and_its_calls_do(start, models):
    (models / "current").unlink()
    async with start(token="0123456789abcdef") as client:
        for path, status in {"/": 200, "/page/index.html": 200, "/status": 401, "/events": 401, "/jobs": 401}.items():
            async with client.http.get(client.url + path) as response:
                assert response.status == status, path


async def test_the_page_is_answered_before_a_version_is_loaded(start):
    async with start() as client:
        async with client.http.get(client.url + "/") as response:
            assert response.status == 200
        assert client.services.engines.serving("current") is None
        assert client.services.supervisor.factory is None


def test_files_of_other_kinds_and_folders_are_not_served(tmp_path):
    for name in ("index.html", "main.js", "style.css", "icon.svg", "notes.txt", "main.js.map", "secret"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.js").mkdir()
    assert read_page(tmp_path).files.keys() == {"index.html", "main.js", "style.css", "icon.svg"}
    assert read_page(tmp_path / "missing").files == {}


@pytest.mark.parametrize(
    ("accepted", "taken"),
    [
        ("gzip", True), ("deflate, gzip;q=0.5", True), ("GZIP", True), ("gzip;q=1.0, br", True), ("br , gzip ; q=0.1", True),
        ("", False), ("identity", False), ("br", False), ("gzip;q=0", False), ("gzip; q=0.000", False), ("x-gzip", False),
    ],
)  # fmt: skip
def test_gzip_is_sent_to_clients_that_say_so(accepted, taken):
    assert accepts_gzip(accepted) is taken


async def test_many_requests_at_once_are_answered_from_memory(lonely, monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_bytes", None)

    async def fetch():
        async with lonely.http.get(lonely.url + "/") as response:
            return response.status

    assert await asyncio.gather(*(fetch() for _ in range(50))) == [200] * 50

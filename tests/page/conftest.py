"""A browser, a running service with the repository's models, and pages that fail their test on any problem they met."""

import os
import random
import re
import shutil
import signal
import socket
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import pytest_asyncio

from tests.harness import Server

pytest.importorskip("playwright", reason="needs playwright")
from playwright.async_api import Page, async_playwright

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
MODELS = Path(__file__).parent.parent.parent / "models"
WAIT = 60_000
"""How long an expectation waits, milliseconds: for a loaded machine, never a measurement."""
GONE = (
    "ERR_CONNECTION_REFUSED", "ERR_CONNECTION_RESET", "ERR_CONNECTION_CLOSED", "ERR_CONNECTION_ABORTED", "ERR_FAILED",
    "ERR_INCOMPLETE_CHUNKED", "ERR_EMPTY_RESPONSE", "ERR_CONTENT_LENGTH_MISMATCH", "ERR_SOCKET_NOT_CONNECTED",
)  # fmt: skip
"""What Chromium calls a server that is killed, at whatever moment of a request."""


def pytest_collection_modifyitems(items):
    """Run the tests of a file in one event loop, which its browser and its server need; skip them without Chromium."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="module"), append=False)
            if CHROMIUM is None:
                item.add_marker(pytest.mark.skip(reason="needs Chromium"))


class Problems:
    """What went wrong in a page: console errors and warnings, exceptions, violations of the policy, failed requests."""

    def __init__(self, page: Page) -> None:
        self.found: list[str] = []
        self._expected: list[re.Pattern] = []
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.found.append(f"exception: {error}"))
        page.on("requestfailed", self._failed)
        page.on("response", self._response)

    def expect(self, *patterns: str) -> None:
        """From now on, problems that match one of these patterns are what the test provokes."""
        self._expected += [re.compile(pattern) for pattern in patterns]

    @property
    def unexpected(self) -> list[str]:
        """The problems that no test asked for."""
        return [text for text in self.found if not any(pattern.search(text) for pattern in self._expected)]

    def _console(self, message) -> None:
        if message.type in ("error", "warning"):
            self.found.append(f"console: {message.text} ({message.location.get('url', '')})")

    def _failed(self, request) -> None:
        # A page that closes, or an image that is replaced while it loads, aborts requests: no failure.
        if request.failure != "net::ERR_ABORTED":
            self.found.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _response(self, response) -> None:
        if response.status >= 400:
            self.found.append(f"answer: {response.request.method} {response.url}: {response.status}")


class Service(Server):
    """A service that can be killed and started again at the same port."""

    def __init__(self, *given, **options) -> None:
        super().__init__(*given, **options)
        self._command[self._command.index("--port") + 1] = str(_port())

    async def restart(self, number: int = signal.SIGKILL, between=None) -> None:
        """Stop the process, await `between`, and start it again."""
        self.stop(number)
        try:
            if between is not None:
                await between()
        finally:
            await self.http.close()
            await self.__aenter__()


def _port() -> int:
    """Return a free port that no connection gets by itself while the service is not there: the kernel's begin at 32768."""
    while True:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@asynccontextmanager
async def running(directory: Path, *options: str, version: str | None = "v1"):
    """Run a service with a copy of the repository's models, `current` at v1, until `version` serves `current`."""
    models = directory / "models"
    for name in ("v1", "v2"):  # not what else whoever tries the project has put there, or deployed
        shutil.copytree(MODELS / name, models / name)
    (models / "current").symlink_to("v1")
    async with Service(models, directory / "state", *options) as service:
        if version is not None:
            await service.until(lambda: _serves(service, version), f"{version} serves", 240)
        yield service


@asynccontextmanager
async def busy(service: Server):
    """Keep a service busy with somebody else's job: what a page adds in the meantime waits, however slowly it is added."""
    headers = {"X-Client-Id": "somebody-else"}
    request = {"prompt": "somebody else's", "steps": 100, "n": 16}
    async with service.http.post(service.url + "/jobs", json=request, headers=headers) as response:
        assert response.status == 202, await response.text()
        job = (await response.json())["id"]
    try:
        yield
    finally:
        async with service.http.delete(f"{service.url}/jobs/{job}", headers=headers) as response:
            assert response.status == 200, await response.text()


async def _serves(service: Server, version: str) -> bool:
    async with service.http.get(service.url + "/health") as response:
        return (await response.json())["version"] == version


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser():
    """Chromium, one for each file of tests."""
    async with async_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        found = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        await found.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory):
    """A running service, one for each file of tests: a test leaves v1 serving and nothing in the queue."""
    async with running(tmp_path_factory.mktemp("page")) as service:
        yield service


@pytest_asyncio.fixture(loop_scope="module")
async def new_page(browser):
    """Opens pages: `await new_page(url, locale="zh-CN", …)`, options as of `browser.new_context`. `page.problems` are its
    problems; an unexpected one fails the test at its end."""
    contexts, pages = [], []

    async def make(url: str, **options) -> Page:
        context = await browser.new_context(
            **{"viewport": {"width": 1440, "height": 900}, "locale": "en-US", **options}
        )
        context.set_default_timeout(WAIT)
        contexts.append(context)
        page = await context.new_page()
        page.problems = Problems(page)
        pages.append(page)
        await page.goto(url)
        return page

    yield make
    problems = [text for page in pages for text in page.problems.unexpected]
    for context in contexts:
        await context.close()
    assert not problems, "\n".join(problems)


@pytest_asyncio.fixture(loop_scope="module")
async def page(new_page, server):
    """The page of the file's service, as a new visitor opens it at a desktop."""
    return await new_page(server.url + "/")

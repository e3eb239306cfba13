"""The reverse proxies of the documentation, with its own lines: only addresses are replaced."""

import asyncio
import io
import re
import shutil
import socket
import subprocess
from pathlib import Path

import aiohttp
import pytest

from tests.harness import Server, pixels

OPERATIONS = Path(__file__).parent.parent / "docs" / "operations.md"
NGINX = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen {address};
{lines}
    }}
}}
"""


def documented(language: str, upstream: str) -> str:
    """Return the documentation's lines for a proxy, with the address of the service."""
    [lines] = re.findall(rf"^```{language}\n(.*?)^```", OPERATIONS.read_text(), re.DOTALL | re.MULTILINE)
    assert lines.count("127.0.0.1:7860") == 1
    return lines.replace("127.0.0.1:7860", upstream)


def nginx(folder: Path, address: str, upstream: str) -> list[str]:
    file = folder / "nginx.conf"
    file.write_text(NGINX.format(folder=folder, address=address, lines=documented("nginx", upstream)))
    return ["nginx", "-c", str(file), "-p", str(folder)]


def caddy(folder: Path, address: str, upstream: str) -> list[str]:
    file = folder / "Caddyfile"
    site = documented("caddyfile", upstream).replace("zwatch.example {", f"http://{address} {{")
    file.write_text(f"{{\n admin off\n}}\n{site}")
    return ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def started(tiny_versions, tmp_path_factory):
    """A service for both proxies."""
    folder = tmp_path_factory.mktemp("proxied")
    shutil.copytree(tiny_versions, folder / "models")
    (folder / "models" / "current").symlink_to("v1")
    server = Server(folder / "models", folder / "state", environment={"ZWATCH_TOKEN": "a token of the test's own"})
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=[nginx, caddy], ids=lambda one: one.__name__)
async def proxy(request, started, tmp_path):
    """The base URL of a proxy before the service."""
    if shutil.which(request.param.__name__) is None:
        pytest.skip(f"{request.param.__name__} is not installed")
    await started.connect()
    await started.http.close()
    address = f"127.0.0.1:{free_port()}"
    command = request.param(tmp_path, address, started.url.removeprefix("http://"))
    log = tmp_path / "proxy.log"
    with log.open("wb") as opened:
        process = subprocess.Popen(
            command, stdout=opened, stderr=opened, env={"HOME": str(tmp_path), "PATH": "/usr/sbin:/usr/bin"}
        )
    try:
        await until_open(address, process, log)
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(30)


async def until_open(address: str, process, log: Path) -> None:
    host, _, port = address.partition(":")
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            _, writer = await asyncio.open_connection(host, int(port))
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return
    raise AssertionError(log.read_text())


async def test_the_page_its_login_a_picture_and_events_work_through_the_proxy_of_the_documentation(proxy):
    own = {"Origin": proxy}  # as the page's own calls have it
    jar = aiohttp.CookieJar(unsafe=True)  # of an address, not a name
    async with aiohttp.ClientSession(proxy, cookie_jar=jar, timeout=aiohttp.ClientTimeout(120)) as http:
        async with http.get("/") as page:
            assert (page.status, page.content_type) == (200, "text/html")
        async with http.post("/login", json={"token": "a token of the test's own"}, headers=own) as answer:
            assert answer.status == 200, await answer.text()
        async with http.get("/events") as events:
            line = await asyncio.wait_for(events.content.readline(), 60)
            assert line == b"event: status\n", "an event arrives while its stream goes on"
        body = {"prompt": "a cat", "steps": 2}
        async with http.post("/generate", json=body, headers=own) as answer:
            assert answer.status == 200, await answer.text()
            assert len(pixels(await answer.read())) == 64 * 64 * 3
        async with http.post("/generate", json=body, headers={"Origin": "http://127.0.0.1:1"}) as answer:
            assert answer.status == 403, "a page of another origin"
        async with http.post("/api/picture_settings", data=io.BytesIO(bytes(8 * 2**20)), headers=own) as answer:
            assert answer.status == 400, "the proxy passes the largest bodies on"

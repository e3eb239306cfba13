"""A restart as a handover: `zwatch serve --takeover` beside a service whose clients notice nothing."""

import asyncio
import base64
import contextlib
import fcntl
import http.client
import io
import itertools
import json
import os
import signal
import socket
import time
from collections import Counter
from contextlib import asynccontextmanager

import aiohttp
import pytest
from PIL import Image

from tests.harness import Server
from zwatch.deploy.look import point
from zwatch.handover.channel import PROTOCOL, Channel, Door, connect

LONG = {"prompt": "a slow cat", "steps": 100, "n": 4}
"""A job of a second or more."""


def service(models, tmp_path, name: str, *options: str, state="state", **how) -> Server:
    """Return a service with a log of its own."""
    made = Server(models, tmp_path / state, *options, **how)
    made.log = tmp_path / f"{name}.log"
    return made


def saved_state(tmp_path, state="state") -> dict:
    return json.loads((tmp_path / state / "state.json").read_bytes())


async def ended(server: Server, within: float = 60.0) -> int:
    """Wait for a process' end; return its exit status."""
    return await asyncio.to_thread(server.process.wait, within)


@asynccontextmanager
async def successor(models, tmp_path, name: str, *options: str, **how):
    """A process that takes over and serves."""
    server = service(models, tmp_path, name, "--takeover", *options, **how)
    server.start()
    try:
        await server.connect()
        yield server
    finally:
        if hasattr(server, "http"):
            await server.http.close()
        server.stop()


class Traffic:
    """Clients that ask all the time, in every way; every answer that is not as it should be is in `failures`."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.failures: list[str] = []
        self.answers: list[float] = []
        self.kinds: Counter[str] = Counter()
        self._stopped = False

    def start(self) -> None:
        ways = [self.image, self.json, self.stream, self.job, self.status]
        self._tasks = [asyncio.create_task(self._client(way, keep)) for way in ways for keep in (True, False)]
        self._tasks += [asyncio.create_task(self._drip(pipelined)) for pipelined in (False, True)]

    async def stop(self) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)

    @property
    def longest_gap(self) -> float:
        """Longest time without any answer, seconds."""
        return max(after - before for before, after in itertools.pairwise(self.answers))

    async def _client(self, way, keeps_alive: bool) -> None:
        connector = aiohttp.TCPConnector(force_close=not keeps_alive)
        # aiohttp repeats a GET whose connection was closed: that would hide what is to be found.
        async with aiohttp.ClientSession(connector=connector) as client:
            client._retry_connection = False
            while not self._stopped:
                try:
                    await way(client)
                except Exception as error:
                    self.failures.append(f"{way.__name__}, keep-alive {keeps_alive}: {error!r}")
                    if len(self.failures) > 20:
                        return
                else:
                    self.answers.append(time.monotonic())
                    self.kinds[way.__name__] += 1
                await asyncio.sleep(0.01)

    async def _drip(self, pipelined: bool) -> None:
        """Send requests in pieces over one connection, the next one before the last is answered if `pipelined`."""
        host, port = self.url.removeprefix("http://").split(":")
        request = f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()
        before = request[:9] if pipelined else b""
        reader = writer = None
        try:
            while not self._stopped:
                if writer is None:
                    reader, writer = await asyncio.open_connection(host, port)
                    begun = b""
                rest = request.removeprefix(begun) + before
                for at in range(0, len(rest), 7):
                    writer.write(rest[at : at + 7])
                    await asyncio.sleep(0.002)
                begun = before
                head = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
                assert head.startswith(b"HTTP/1.1 200"), head
                self.kinds["drip"] += 1
                if b"connection: close" in head.lower():
                    writer.close()
                    writer = None
        except Exception as error:
            self.failures.append(f"drip, pipelined {pipelined}: {error!r}")
        finally:
            if writer is not None:
                writer.close()

    async def image(self, client) -> None:
        async with client.post(self.url + "/generate", json={"prompt": "a cat"}) as response:
            assert response.status == 200, await response.text()
            assert (await response.read()).startswith(b"\x89PNG")

    async def json(self, client) -> None:
        async with client.post(
            self.url + "/generate", json={"prompt": "a cat", "n": 2}, headers={"Accept": "application/json"}
        ) as response:
            assert response.status == 200, await response.text()
            assert len((await response.json())["images"]) == 2

    async def stream(self, client) -> None:
        async with client.post(
            self.url + "/generate", json={"prompt": "a cat"}, headers={"Accept": "text/event-stream"}
        ) as response:
            text = await response.text()
            assert (response.status, "event: done" in text) == (200, True), text

    async def job(self, client) -> None:
        async with client.post(self.url + "/jobs", json={"prompt": "a cat"}) as response:
            accepted = await response.json()
            assert response.status == 202, accepted
        while True:
            async with client.get(f"{self.url}/jobs/{accepted['id']}") as response:
                found = await response.json()
                assert response.status == 200, found
            if found["state"] not in ("queued", "running"):
                break
            await asyncio.sleep(0.01)
        assert found["state"] == "done", found
        async with client.get(self.url + found["images"][0]["url"]) as response:
            assert response.status == 200, await response.text()
            assert (await response.read()).startswith(b"\x89PNG")

    async def status(self, client) -> None:
        async with client.get(self.url + "/health") as response:
            body = await response.json()
            assert (response.status, body["version"]) == (200, "v1"), body


async def test_clients_notice_nothing_of_a_takeover_and_state_and_address_come_over(models, tmp_path):
    (models / "v1/v2").symlink_to("nowhere")  # a stray that is refused, and stays so
    async with service(models, tmp_path, "one") as one:
        await one.serves_current("v1")
        traffic = Traffic(one.url)
        idle = http.client.HTTPConnection(one.url.removeprefix("http://"))
        assert await asyncio.to_thread(status_by, idle) == 200
        idle.auto_open = 0
        traffic.start()
        await asyncio.sleep(0.5)
        async with successor(models, tmp_path, "two") as two:
            assert await ended(one) == 0
            await asyncio.sleep(0.5)
            await traffic.stop()
            assert two.url == one.url
            assert await asyncio.to_thread(status_by, idle) == 200, "an idle connection lives on, in the new process"
            assert (await two.status())["serving"]["version"] == "v1"
        idle.close()
    assert not traffic.failures, traffic.failures
    assert set(traffic.kinds) == {"image", "json", "stream", "job", "status", "drip"}
    print(f"longest time without an answer: {traffic.longest_gap:.3f} s; answers {dict(traffic.kinds)}")
    for log in (one.log, two.log):
        text = log.read_text()
        assert "POST /generate 200" in text
        assert "Traceback" not in text
        assert "search index" not in text, "only one of them had it at a time"
    state = saved_state(tmp_path)
    assert (state["running"], state["crashes"], len(state["refused"])) == (False, [], 1)


@pytest.mark.slow
async def test_two_that_want_to_take_over_at_once_do_so_one_after_the_other(models, tmp_path):
    async with service(models, tmp_path, "one") as one:
        await one.serves("v1")
        traffic = Traffic(one.url)
        traffic.start()
        both = [service(models, tmp_path, name, "--takeover") for name in ("two", "three")]
        for server in both:
            server.start()
        assert await ended(one) == 0
        while not (over := [server for server in both if server.process.poll() is not None]):
            await asyncio.sleep(0.05)
        assert over[0].process.returncode == 0
        await asyncio.sleep(0.5)
        await traffic.stop()
        assert not traffic.failures, traffic.failures
        (last,) = [server for server in both if server.process.poll() is None]
        assert last.stop() == 0
    assert not any("Traceback" in server.log.read_text() for server in (one, *both))


def status_by(connection: http.client.HTTPConnection) -> int:
    """Send a request on a connection, and return the status of its answer."""
    connection.request("GET", "/health")
    with connection.getresponse() as response:
        response.read()
        return response.status


async def test_jobs_of_the_old_process_live_on_in_the_new_one_also_when_the_old_one_is_killed(models, tmp_path):
    options, state = ("--no-history",), f"{'d' * 120}/state"  # a longer path than a socket may have
    (tmp_path / state).parent.mkdir()
    async with service(models, tmp_path, "one", *options, state=state) as one:
        await one.serves("v1")
        _, short = await one.post("/jobs", {"prompt": "a cat"})
        async with feeding(one) as long, successor(models, tmp_path, "two", *options, state=state) as two:
            long.ended.set()
            left = [job for job in long.jobs if (await two.get(f"/jobs/{job}"))["state"] in ("queued", "running")]
            running = left.pop(-2)
            before = await two.get(f"/jobs/{running}")
            assert before["state"] == "queued"
            for job in left:
                async with two.http.delete(f"{two.url}/jobs/{job}") as response:
                    assert (await response.json())["state"] == "cancelled"
            async with two.http.get(f"{two.url}/jobs/{running}/events") as response:
                steps = [line async for line in take(response.content, 40) if line == b"event: step\n"]
            assert len(steps) > 3, "it is followed while the old process draws it"
            assert one.process.poll() is None
            one.process.kill()
            await ended(one)

            async def done():
                found = await two.get(f"/jobs/{running}")
                return found if found["state"] not in ("queued", "running") else None

            found = await two.until(done, "the job is drawn again, by the new process")
            assert (found["state"], found["request"]["seed"]) == ("done", before["request"]["seed"])
            for job, number in ((short["id"], 0), (running, 3)):
                found = await two.get(f"/jobs/{job}")
                async with two.http.get(two.url + found["images"][number]["url"]) as response:
                    assert (response.status, (await response.read())[:4]) == (200, b"\x89PNG")
            assert (await two.get(f"/jobs/{left[0]}"))["state"] == "cancelled"

            # What the new process does next is its own: a deploy, and another takeover, for which memory holds one version only,
            # at another address.
            status, _ = await two.post("/api/deploy", {"version": "v2"})
            assert status == 200
            size = sum(path.stat().st_size for path in (models / "v1").rglob("*.safetensors"))
            small = (*options, "--memory-budget", str(size * 3 // 2), "--host", "localhost")
            async with feeding(two) as more, successor(models, tmp_path, "three", *small, state=state) as three:
                more.ended.set()
                assert three.url != two.url
                assert two.process.poll() is None
                assert (await three.get("/status"))["serving"] is None
                assert (await three.generate())[0] == "v2", "it waited until there was room"
                assert await ended(two) == 0
                assert "two do not fit in memory" in three.log.read_text()
                assert saved_state(tmp_path, state)["aliases"]["current"]["previous"]["version"] == "v1"
                for job in (short["id"], *more.jobs):
                    assert (await three.get(f"/jobs/{job}"))["state"] == "done"


async def test_a_job_that_changes_an_image_is_drawn_again_from_the_image_that_came_over(models, tmp_path):
    picture, mask = Image.effect_noise((70, 50), 90).convert("RGB"), Image.linear_gradient("L").resize((70, 50))
    image, mask = (base64.b64encode(png_of(one)).decode() for one in (picture, mask))
    wanted = {"prompt": "a dog", "seed": 5, "steps": 4, "image": image, "mask": mask}
    async with service(models, tmp_path, "one") as one:
        await one.serves("v1")
        expected = await drawn(one, (await one.post("/jobs", wanted))[1]["id"])
        long = [(await one.post("/jobs", {**LONG, "n": 16}))[1]["id"] for _ in range(20)]
        _, waiting = await one.post("/jobs", wanted)
        async with successor(models, tmp_path, "two") as two:
            assert (await two.get(f"/jobs/{waiting['id']}"))["state"] == "queued"
            one.process.kill()
            await ended(one)
            for job in long:
                async with two.http.delete(f"{two.url}/jobs/{job}") as response:
                    await response.read()
            assert await drawn(two, waiting["id"]) == expected


def png_of(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


async def drawn(server: Server, job: str) -> bytes:
    """Wait for a job, and return the pixels of its picture."""

    async def done():
        found = await server.get(f"/jobs/{job}")
        return found if found["state"] not in ("queued", "running") else None

    found = await server.until(done, "the job ends")
    assert found["state"] == "done", found
    async with server.http.get(server.url + found["images"][0]["url"]) as response:
        with Image.open(io.BytesIO(await response.read())) as image:
            return image.tobytes()


class Feeding:
    """The long jobs of a service, of which three have not ended until `ended` is set."""

    def __init__(self) -> None:
        self.jobs: list[str] = []
        self.ended = asyncio.Event()


@asynccontextmanager
async def feeding(server: Server):
    """Keep a service busy with long jobs."""
    fed = Feeding()

    async def feed() -> None:
        while not fed.ended.is_set():
            states = [(await server.get(f"/jobs/{job}"))["state"] for job in fed.jobs[-3:]]
            if sum(state in ("queued", "running") for state in states) < 3:
                fed.jobs.append((await server.post("/jobs", LONG))[1]["id"])
            else:
                await asyncio.sleep(0.05)

    task = asyncio.create_task(feed())
    try:
        yield fed
    finally:
        task.cancel()


async def take(lines, number: int):
    """Yield the first lines of a stream."""
    async for line in lines:
        yield line
        if (number := number - 1) == 0:
            return


# --- when one of the two is not there any more: the other one is played by the test


async def meet(state) -> Channel:
    """Connect to a service as one that takes over, and return the channel after the first words."""
    channel = Channel(await asyncio.to_thread(connect, state))
    channel.send({"protocol": PROTOCOL, "zwatch": "test"})
    return channel


async def exchange(channel: Channel, offer: dict):
    """Ask for the exchange; return what is given once all jobs were told."""
    channel.send({"ask": "exchange", "served": offer["served"], "final": False})
    yours = await channel.receive(30)
    assert "yours" in yours.body, yours
    while (await channel.receive(30)).body.get("jobs") != "told":
        pass
    return yours


async def test_a_service_goes_on_as_it_was_whenever_the_other_process_ends_before_it_serves(models, tmp_path):
    state = tmp_path / "state"
    async with service(models, tmp_path, "one") as one:
        await one.serves("v1")
        other = await meet(state)
        offer = (await other.receive(10)).body
        assert [alias for alias, version, digest in offer["served"]] == ["current"]
        second = await meet(state)
        assert (await second.receive(10)).body["busy"]
        assert await second.receive(10) is None
        stranger = Channel(await asyncio.to_thread(connect, state))
        stranger.send({"protocol": 999})
        assert (await stranger.receive(10)).body["protocol"] == PROTOCOL
        other.send({"ask": "room"})
        assert (await other.receive(10)).body["served"] == offer["served"]

        # Something else serves by now than what the other process has loaded.
        await asyncio.to_thread(point, models, "current", "v2")
        await one.serves("v2")
        other.send({"ask": "exchange", "served": offer["served"]})
        offer = (await other.receive(30)).body
        assert offer["served"][0][1] == "v2"

        yours = await exchange(other, offer)
        lock, listening = yours.fds
        with pytest.raises(BlockingIOError), open(state / "lock") as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert saved_state(tmp_path)["running"] is False
        # The exchange is under way: requests are answered, what changes what serves waits for its end.
        assert (await one.generate())[0] == "v2"
        deploying = asyncio.create_task(one.post("/api/deploy", {"version": "v1"}))
        _, accepted = await one.post("/jobs", {"prompt": "a cat"})
        told = await other.receive(10)
        while told.body.get("job") != accepted["id"]:
            told = await other.receive(10)
        # The other process is about to listen: new connections are left to it.
        other.send({"ask": "accept"})
        while "accepting" not in (await other.receive(10)).body:
            pass
        reader, writer = await asyncio.open_connection(*one.url.removeprefix("http://").split(":"))
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answering = asyncio.create_task(reader.read())
        await asyncio.sleep(0.3)
        assert not answering.done()
        assert not deploying.done()
        other.close()
        for fd in (lock, listening):
            os.close(fd)
        async with asyncio.timeout(30):
            assert b"200 OK" in await answering, "the connection that waited is accepted after all"
        writer.close()
        status, body = await deploying
        assert (status, body["version"]) == (200, "v1")
        await one.serves("v1")
        assert saved_state(tmp_path)["running"] is True
        assert "this one goes on" in one.log.read_text()
        with pytest.raises(BlockingIOError), open(state / "lock") as again:
            fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)

        # A process that cannot serve ends, and leaves everything as it is.
        wrong = service(models, tmp_path, "wrong", "--takeover", "--host", "192.0.2.1", "--insecure-no-token")
        wrong.start()
        assert await ended(wrong) == 2
        assert "192.0.2.1" in wrong.log.read_text().splitlines()[-1]
        waiting = service(models, tmp_path, "waiting", "--takeover")
        waiting.start()
        await one.until(lambda: "beside zwatch" in waiting.log.read_text(), "it has met the service")
        assert waiting.stop(signal.SIGTERM) == 0
        await one.serves("v1")
        assert (await one.generate())[0] == "v1"
        plain = service(models, tmp_path, "plain")
        plain.start()
        assert await ended(plain) == 2
        assert "--takeover" in plain.log.read_text()
    assert saved_state(tmp_path)["running"] is False


class Old:
    """An old process of which the test decides when it ends: it has the lock, a listening socket, and a door."""

    def __init__(self, state, models) -> None:
        from zwatch.deploy.seal import read_seal

        state.mkdir(exist_ok=True)
        self.lock = os.open(state / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.door = Door(state)
        fd = os.open(models / "v1", os.O_RDONLY)
        self.served = [["current", "v1", read_seal(fd).digest]]
        os.close(fd)

    async def meet(self, protocol=PROTOCOL) -> Channel:
        channel = await asyncio.wait_for(self.door.accept(), 60)
        assert (await channel.receive(10)).body["protocol"] == PROTOCOL
        channel.send({"protocol": protocol, "zwatch": "old", "served": self.served, "weights": 0})
        return channel

    def give(self, channel: Channel) -> None:
        address = list(self.listening.getsockname())
        channel.send({"yours": {"lock": True, "address": address}}, [self.lock, self.listening.fileno()])
        channel.send({"jobs": "told"})

    def end(self) -> None:
        self.door.close()
        self.listening.close()
        with contextlib.suppress(OSError):
            os.close(self.lock)


@asynccontextmanager
async def alone(models, tmp_path, name: str, **how):
    """A process that wants to take over; killed at the end, if it has not ended."""
    server = service(models, tmp_path, name, "--takeover", **how)
    server.start()
    try:
        yield server
    finally:
        if hasattr(server, "http"):
            await server.http.close()
        server.stop(signal.SIGKILL)


async def test_a_new_process_goes_on_alone_whenever_the_old_one_ends(models, tmp_path):
    old = Old(tmp_path / "state", models)
    async with alone(models, tmp_path, "new") as new:
        stranger = await old.meet(protocol=PROTOCOL + 1)
        assert await stranger.receive(10) is None
        channel = await old.meet()
        asked = (await channel.receive(60)).body
        assert (asked["ask"], asked["served"]) == ("exchange", old.served)
        channel.close()  # before it gave anything
        channel = await old.meet()  # it comes again, with what it has loaded
        await channel.receive(60)
        channel.close()
        old.end()
        await new.connect()
        await new.serves("v1")
        log = new.log.read_text()
        assert "another protocol" in log
        assert log.count("is loaded and warm beside") == 1
        assert "loading v1" not in log, "it was not read again"

    old = Old(tmp_path / "state", models)
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(tmp_path / "notify"))
    environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
    async with alone(models, tmp_path, "newer", environment=environment) as new:
        channel = await old.meet()
        await channel.receive(60)
        old.give(channel)
        port = old.listening.getsockname()[1]
        channel.close()  # between the exchange and the first word that the new one serves
        old.end()
        await new.connect()
        assert new.url.endswith(f":{port}")
        await new.serves("v1")
        assert (await new.generate())[0] == "v1"
        assert saved_state(tmp_path)["running"] is True
        notified.settimeout(30)
        assert notified.recv(1000).decode() == f"MAINPID={new.process.pid}\nREADY=1"
        assert new.stop() == 0
    notified.close()


async def test_shares_and_aliases_that_a_pattern_found_are_taken_over_without_another_load(models, tmp_path):
    (models / "current@25").symlink_to("v2")
    (models / "canary").symlink_to("v2")

    async def serves_all(server):
        status = await server.status()
        serving = {name: one["serving"] for name, one in {**status["aliases"], **status["shares"]}.items()}
        return serving == {"current": "v1", "canary": "v2", "current@25": "v2"} and status

    async with service(models, tmp_path, "old", "--alias", "c*") as old:
        await old.until(lambda: serves_all(old), "all are served")
        async with successor(models, tmp_path, "new", "--alias", "c*") as new:
            assert await ended(old) == 0
            status = await new.until(lambda: serves_all(new), "all are served")
            assert status["shares"]["current@25"]["attempt"]["state"] == "PROMOTED"
            assert status["status"] == "ok"
            async with new.http.get(new.url + "/attempts") as response:
                found = [(one["version"], one["way"]) for one in (await response.json())["attempts"]]
            assert sorted(version for version, way in found if way == "device") == ["v1", "v2"]

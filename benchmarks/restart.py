"""A restart in a systemd that is really booted: what clients see that simply wait.

    python benchmarks/restart.py [--clients 8 32] [--restarts 2]

The units are installed by the steps in their own comments, in a container over an overlay of this machine (tests/booted.py; it needs
root and systemd-nspawn), with the tiny models. Each client draws pictures one after the other without repeating a request: a
third of them opens a connection for each, a third keeps its connection, a third keeps it and pauses. Meanwhile the service is
restarted some times. Counted: pictures, and failures of any kind (refused, reset, closed without an answer, any status but 200).

- socket: `systemctl restart zwatch`, with zwatch.socket.
- bind: the same without the socket unit: the service binds its address itself.
- takeover: instances of the template start, zwatch@b, then zwatch@a again, with zwatch.socket.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from common import RESULTS, ROOT, Clock, Json, Results, machine, now, packages, place_line

sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from tests.booted import Booted, install, serves  # noqa: E402

DROP_IN = """
[Service]
Environment=OMP_NUM_THREADS=1 ZWATCH_QUEUE=256
RestartSec=100ms
"""
AROUND = 2.0
"""Seconds of traffic before each restart, and after the last one."""


@contextlib.contextmanager
def clients(booted: Booted, count: int) -> Iterator[Json]:
    """Let clients draw inside the block; after it the yielded object has what they got."""
    found: Json = {}
    command = ["/opt/zwatch/bin/python", "/opt/source/tests/waiting_clients.py", "--until", "/tmp/stop"]  # noqa: S108 (in the container)
    booted.run("rm", "-f", "/tmp/stop")  # noqa: S108

    def draw() -> None:
        found.update(json.loads(booted.run(*command, "--clients", str(count), timeout=600)))

    thread = threading.Thread(target=draw)
    thread.start()
    try:
        yield found
    finally:
        booted.run("touch", "/tmp/stop")  # noqa: S108
        thread.join()


def measured(booted: Booted, count: int, restarts: int, restart: Callable[[int], None]) -> Json:
    """Restart some times under traffic; return what the clients got."""
    spent = []
    with clients(booted, count) as found:
        for number in range(restarts):
            time.sleep(AROUND)
            begun = time.monotonic()
            restart(number)
            spent.append(round(time.monotonic() - begun, 2))
        time.sleep(AROUND)
    return {"clients": count, "restarts": restarts, "seconds until it serves again": spent, **found}


def make_versions(folder: Path) -> None:
    """Write and seal the tiny versions v1 and v2."""
    from random_pipeline import PRESETS, write_pipeline

    from zwatch.deploy.sealing import write_seal

    for seed in (1, 2):
        write_pipeline(folder / f"v{seed}", PRESETS["tiny"], seed)
        write_seal(folder / f"v{seed}", f"v{seed}")


def run(booted: Booted, options: argparse.Namespace, clock: Clock, results: Results) -> None:
    """Measure all ways to restart."""

    def restart(number: int) -> None:
        booted.run("systemctl", "restart", "zwatch")
        serves(booted, "v1")

    def take_over(number: int) -> None:
        new, old = ("zwatch@b", "zwatch@a") if number % 2 == 0 else ("zwatch@a", "zwatch@b")
        booted.run("systemctl", "start", new)
        booted.until(lambda: booted.show(old, "ActiveState") == "inactive", f"{old} has ended")

    def measure(way: str, act: Callable[[int], None]) -> None:
        for count in options.clients:
            row = {"way": way, **measured(booted, count, options.restarts, act)}
            clock.say(json.dumps(row))
            results.data["rows"].append(row)
            results.save()

    serves(booted, "v1")
    measure("socket", restart)
    booted.shell(
        "systemctl disable --now zwatch.socket zwatch; mv /etc/systemd/system/zwatch.socket /root; systemctl daemon-reload"
    )
    booted.run("systemctl", "start", "zwatch")
    serves(booted, "v1")
    measure("bind", restart)
    booted.shell(
        "systemctl stop zwatch; cd /etc/systemd/system; mv zwatch.service /root; "
        "/opt/zwatch/bin/zwatch systemd-unit --takeover > zwatch@.service; "
        "/opt/zwatch/bin/zwatch systemd-unit --takeover --socket > zwatch.socket; "
        "systemctl daemon-reload; systemctl enable --now zwatch.socket zwatch@a"
    )
    serves(booted, "v1", "zwatch@a")
    measure("takeover", take_over)


def table(data: Json) -> list[str]:
    """Return the result as lines of text."""
    lines = [place_line(data["machine"])]
    lines += [
        f"{row['way']:9} {row['clients']:3} clients, {row['restarts']} restarts: {row['answered']} pictures, "
        f"{row['failed']} failed, longest wait {row['longest_s']} s"
        for row in data["rows"]
    ]
    return lines


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--restarts", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "restart.json")
    options = parser.parse_args()
    clock = Clock(None)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        results = Results(
            options.out, [work], benchmark="restart", started=now(), machine=machine(work),
            settings={"preset": "tiny", "device": "cpu", "restarts": options.restarts},
            versions=packages("torch", "aiohttp"), rows=[],
        )  # fmt: skip
        make_versions(work / "versions")
        with Booted(work / "machine", {"/opt/source": ROOT, "/opt/versions": work / "versions"}) as booted:
            results.data["systemd"] = booted.run("systemctl", "--version").splitlines()[0]
            install(booted, DROP_IN)
            run(booted, options, clock, results)
        results.data["complete"] = True
        results.save()
    print("\n".join(table(results.data)))


if __name__ == "__main__":
    main()

"""A real `zwatch serve` whose replicas run on two simulated hosts: `python -m tests.fleet.controller ROOT… -- OPTIONS`.

Each ROOT is HOST=DIRECTORY, of one replica: the name of its host, and that host's own copy of the models root, with its LoRAs beside it.
"""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path

from zwatch import logwriter
from zwatch.cli import commands
from zwatch.config import Config
from zwatch.fleet.settings import FleetLimits, Place
from zwatch.serving import end_at_once, serve

LIMITS = FleetLimits(look=0.3, silent=8.0, begin=90.0, await_version=60.0, straggler=2.0, again=1.0, left=20.0, orphaned=20.0, idle=8.0)  # fmt: skip
"""Short ones, so that a replica that hangs is noticed in a test's time."""


def places(texts):
    found = []
    for text in texts:
        host, _, root = text.partition("=")
        found.append(Place(host=host, models=Path(root), loras=Path(root).parent / "loras"))
    return tuple(found)


def main():
    cut = sys.argv.index("--")
    with commands.commands["serve"].make_context("serve", sys.argv[cut + 1 :]) as context:
        config = Config(**{**context.params, "history": False})
    config = replace(config, places=places(sys.argv[1:cut]), fleet_limits=LIMITS)
    with logwriter.queued("text"):
        ended = asyncio.run(serve(config))
    if ended.lingering:
        end_at_once(0)


if __name__ == "__main__":
    main()

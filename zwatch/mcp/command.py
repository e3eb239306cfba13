"""Runs the server of `zwatch mcp` until its client ends it."""

import asyncio
import importlib.util
import os
import signal
import sys
from pathlib import Path

from zwatch.client import Service
from zwatch.errors import UsageError


def serve(service: Service, *, allows_deploy: bool, directory: Path | None) -> int:
    """Serve the tools over standard input and output, and end the process. `directory` is where pictures may be read and
    written, None: nowhere.

    Raises:
        UsageError: the package `mcp` is not installed.
    """
    if importlib.util.find_spec("mcp") is None:
        raise UsageError("zwatch mcp needs the package mcp: `pip install 'zwatch[mcp]'`")
    from zwatch.mcp.server import run

    if sys.stdin.isatty():
        print(
            "zwatch: this speaks the Model Context Protocol with a program that starts it; Ctrl-C ends it",
            file=sys.stderr,
        )
    # A thread waits for standard input, and others may wait for the service: neither ends in time. Connections that close
    # cancel what is drawn.
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(130))
    asyncio.run(run(service, allows_deploy=allows_deploy, directory=directory))
    os._exit(0)

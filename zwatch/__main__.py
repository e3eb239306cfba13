"""The command `zwatch`, also as `python -m zwatch`."""

import os
import signal
import sys
from contextlib import suppress

from zwatch.hangup import Hangup


def main() -> int:
    """Run the command line. A signal counts from here on: importing the rest takes a while."""
    is_service = sys.argv[1:2] == ["serve"]
    # Nothing has begun that must be finished. `serving.serve` replaces these, as the command line does SIGINT's.
    hangup = Hangup(lambda: None, lambda: os._exit(0))  # it looks when it starts
    actions = {
        signal.SIGINT: lambda number, frame: os._exit(130),
        signal.SIGTERM: lambda number, frame: os._exit(0),
        signal.SIGHUP: lambda number, frame: hangup(),
    }
    for number in actions if is_service else (signal.SIGINT,):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, actions[number])
    from zwatch import cli

    if not is_service and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    status = cli.main()
    if status == 0 and not is_service:
        for number in (
            signal.SIGINT,
            signal.SIGTERM,
            signal.SIGHUP,
        ):  # it is done and said: the interpreter's end changes nothing
            signal.signal(number, signal.SIG_IGN)
    _end_beside_device(status)
    return status


def _end_beside_device(status: int) -> None:
    """End the process at once if this command used a GPU: threads that compile kernels for it may still run, and the interpreter,
    which would end beside them, aborts when one of them comes back from CUDA's libraries."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed by the caller
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    raise SystemExit(main())

"""The command `zwatch`, also as `python -m zwatch`."""

import os
import signal
import sys


def main() -> int:
    """Run the command line. A signal counts from here on: importing the rest takes a while."""
    is_service = sys.argv[1:2] == ["serve"]
    # Nothing has begun that must be finished. `serving.serve` replaces these, as the command line does SIGINT's.
    for number in (signal.SIGINT, *((signal.SIGTERM, signal.SIGHUP) if is_service else ())):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, _: os._exit(130 if number == signal.SIGINT else 0))
    from zwatch import cli

    if not is_service and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())

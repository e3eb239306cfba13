"""The command `zwatch`, also as `python -m zwatch`."""

import os
import signal
import sys


def main() -> int:
    """Run the command line. A stop of `serve` counts from here on: importing the rest takes a while."""
    if sys.argv[1:2] == ["serve"]:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                # Nothing has begun that must be finished. `serving.serve` replaces this.
                signal.signal(number, lambda number, frame: os._exit(0))
    from zwatch import cli

    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())

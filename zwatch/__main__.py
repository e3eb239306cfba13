"""`python -m zwatch` is the command `zwatch`."""

from zwatch.cli import main

if __name__ == "__main__":
    raise SystemExit(main())

"""Shares: the names of links such as `current@10`, and which clients they concern. Pure rules over names."""

import re
from dataclasses import dataclass

from blake3 import blake3

from zwatch.deploy.versions import is_version_name

MARK = "@"
"""Between an alias and a percentage. No version's name has it, so a share cannot be taken for a version."""
MOST_PERCENT = 100
_PERCENT = re.compile("0|[1-9][0-9]{0,2}")


@dataclass(frozen=True, slots=True)
class ShareLink:
    """A share's name in two parts: `percent` of the requests for `alias`."""

    alias: str
    percent: int

    @property
    def name(self) -> str:
        """The name of the link."""
        return f"{self.alias}{MARK}{self.percent}"


def parse_share(name: str) -> ShareLink | None:
    """Return the share that a link's name stands for; None if it stands for none."""
    alias, mark, percent = name.partition(MARK)
    if not mark or not is_version_name(alias) or _PERCENT.fullmatch(percent) is None:
        return None
    return ShareLink(alias, int(percent)) if int(percent) <= MOST_PERCENT else None


def share_key(alias: str) -> str:
    """Return the key of an alias's share, whatever its percentage is: a rename changes only that."""
    return f"{alias}{MARK}"


def alias_of_key(key: str) -> str | None:
    """Return the alias whose share has this key; None if it is no share's."""
    alias, mark, rest = key.partition(MARK)
    return alias if mark and not rest else None


def alias_meant(name: str) -> str | None:
    """Return the alias that a name with a mark is about, whether or not it is a share's; None if it has no mark."""
    alias, mark, _ = name.partition(MARK)
    return alias if mark else None


def why_no_share(name: str) -> str:
    """Return the sentence about a name with a mark that is no share's."""
    alias, _, given = name.partition(MARK)
    if _PERCENT.fullmatch(given) is not None:
        found = f"{given} is more than {MOST_PERCENT}"
    elif given.isascii() and given.isdecimal():
        found = f"{given!r} has a leading zero or is too long"
    else:
        found = f"{given!r} is no whole number" if given else "nothing follows it"
    return (
        f"{name}: after {MARK} a share's name has a whole number from 0 to {MOST_PERCENT}, but {found}; rename it, such as "
        f"`mv -T {name} {alias}{MARK}10`, or remove it"
    )


def side_of(client: str, alias: str) -> float:
    """Return where a client stands among all clients of an alias, from 0 up to 100, exclusive.

    It is on the share's side while this is below the share's percentage, so a share that grows moves nobody back. From blake3,
    whose values are spread evenly: https://github.com/BLAKE3-team/BLAKE3-specs.
    """
    # The lengths are of no use to an attacker, but two different pairs must not have one text.
    text = f"{len(alias)}:{alias}:{client}".encode("utf-8", "surrogatepass")
    # 53 bits, which a float holds: 64 could be rounded up to 100.
    return int.from_bytes(blake3(text).digest(length=8), "big") // 2**11 / 2**53 * 100.0

"""What must serve: a model of the rules, which knows only what operators did and what lies on disk.

The rules themselves are `must_serve` and the lines around it. Everything else here keeps the books that they need: what was
promoted, what proved itself, what crashed.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from zwatch.deploy.shares import side_of

GOOD_IMAGES, KEPT_GOOD, KEPT_PROMOTED, CRASHES = 3, 2, 3, 2

Key = tuple[str, str | None]


@dataclass
class Content:
    """What a version directory holds: the digest of its seal if it has a valid one, and what it draws."""

    digest: str | None
    colour: tuple[int, int, int]
    loads: bool = True


@dataclass
class AliasTruth:
    """What is known of one alias."""

    serving: Key | None = None
    stamp: tuple = ()
    unloaded: tuple | None = None
    refused: tuple | None = None
    """The (wish, stamp) that failed for a reason that passes, until a pause is over."""
    good: list[Key] = field(default_factory=list)
    promoted: list[Key] = field(default_factory=list)
    served: Key | None = None
    previous: Key | None = None
    saved_previous: Key | None = None

    def promote(self, key):
        if self.serving is None:
            self.previous = next((one for one in (self.served, self.saved_previous) if one not in (None, key)), None)
        else:
            self.previous = self.serving
        self.serving, self.saved_previous = key, self.previous
        self.promoted = [key, *(one for one in self.promoted if one != key)][:KEPT_PROMOTED]


class Truth:
    """What must be so, after everything that happened."""

    def __init__(self, root: Path, aliases):
        self.root = root
        self.aliases = {name: AliasTruth() for name in aliases}
        self.shares: dict[str, AliasTruth] = {}
        """By the name of the link, such as `current@10`: at most one of each alias."""
        self.disk: dict[str, Content] = {}
        self.resident: set[Key] = set()
        self.colours: dict[Key, tuple[int, int, int]] = {}
        self.images: dict[Key, int] = {}
        self.proved: set[Key] = set()
        self.crashes: dict[Key, tuple[int, frozenset]] = {}

    # --- the rules

    def must_serve(self, name):
        """Return what an alias must serve now."""
        alias, wish = self.aliases[name], self.wish(name)
        if alias.unloaded is not None:
            return None
        if wish in self.resident:
            return wish
        if self.can_load(wish) and alias.refused is None:
            return wish
        if alias.serving is not None:
            return alias.serving
        return next((key for key in alias.good + alias.promoted if key != wish and self.can_load(key)), None)

    def must_serve_by_share(self, name):
        """Return what a share must serve now: what its link asks for if that can be, else what it served."""
        share, wish = self.shares[name], self.wish(name)
        if share.unloaded is not None:
            return None
        can_be = wish in self.resident or (self.can_load(wish) and share.refused is None)
        return wish if can_be else share.serving

    def draws(self, model, user="127.0.0.1"):
        """Return what must draw a request for a model, or for none: the share of its alias for those on its side."""
        if model in self.shares:
            return self.shares[model].serving
        alias = model or "current"
        for name, share in self.shares.items():
            of, _, percent = name.partition("@")
            is_moved = of == alias and model != "current" and side_of(user, alias) < int(percent)
            if is_moved and share.serving is not None:
                return share.serving
        return self.aliases[alias].serving

    def can_load(self, key):
        """Say whether a version's files are as they were sealed and draw, and it is not set aside."""
        content = None if key is None else self.disk.get(key[0])
        is_whole = content is not None and content.loads and None is not content.digest == key[1]
        return is_whole and self.crashes.get(key, (0, None))[0] < CRASHES

    # --- what lies on disk

    def wish(self, name) -> Key | None:
        """Return what an alias's link asks for."""
        return self.key_at(self.root / name) if (self.root / name).is_symlink() else None

    def key_at(self, path) -> Key | None:
        try:
            where = Path(os.path.realpath(path, strict=True))
        except OSError:
            return None
        if where.parent != self.root or where.name not in self.disk:
            return None
        return where.name, self.disk[where.name].digest

    def links(self, path) -> list[Path]:
        """Return the symlinks of a chain, from a path to where it ends."""
        found: list[Path] = []
        while os.path.islink(path) and path not in found:
            found.append(path)
            path = Path(os.path.normpath(path.parent / os.readlink(path)))
        return found

    def stamp(self, name) -> tuple:
        return tuple((os.lstat(link).st_ino, os.lstat(link).st_ctime_ns) for link in self.links(self.root / name))

    def place(self, directory, stray) -> Path | None:
        """Return the link that `ln -sf` of any alias in this directory means: the last one of the only chain that leads there, from
        wherever below the models root, but for what an earlier `ln -sf` left. None if it is not clear: also two aliases that lead
        through one link are two."""
        leading = set()
        for here, folders, names in os.walk(self.root):
            for path in (Path(here, name) for name in [*folders, *names]):
                if (
                    path != stray
                    and path.is_symlink()
                    and not self._is_like_a_stray(path)
                    and os.path.exists(path)
                    and os.path.realpath(path) == str(directory)
                ):
                    leading.add(path)
        chains = [self.links(self.root / name) for name in self.followed]
        return next((chain[-1] for chain in chains if leading and set(chain) == leading), None)

    def _is_like_a_stray(self, path) -> bool:
        """Say whether a link lies in a version and has the name of one."""
        beside = self.root / path.name
        return path.parent.parent == self.root and beside.is_dir() and not beside.is_symlink()

    # --- what happens

    @property
    def followed(self):
        """All aliases, then all shares, by the names of their links."""
        return self.aliases | self.shares

    def find_shares(self):
        """Take in which shares there are, and that one was renamed."""
        found = {path.name for path in self.root.glob("*@*") if path.is_symlink()}
        for name in [name for name in self.shares if name not in found]:
            alias = name.partition("@")[0]
            new = next((one for one in found - set(self.shares) if one.partition("@")[0] == alias), None)
            share = self.shares.pop(name)
            if new is not None:
                self.shares[new] = share
        for name in found - set(self.shares):
            self.shares[name] = AliasTruth()
        self.shares = dict(sorted(self.shares.items()))

    def find_alias(self, name):
        """Take in that there is a link that a pattern matches now, or none any more: then nothing is known of it."""
        if not os.path.lexists(self.root / name):
            self.aliases.pop(name, None)
        elif name not in self.aliases:
            self.aliases[name] = AliasTruth()

    def rename(self, old, new):
        """Rename a share: what is known of its link stays."""
        before, share = self.stamp(old), self.shares[old]
        os.rename(self.root / old, self.root / new)
        after = self.stamp(new)
        if old == new:
            return
        if share.unloaded == before:
            share.unloaded = after
        if share.refused is not None and share.refused[1] == before:
            share.refused = (share.refused[0], after)
        self.crashes = {
            key: (count, frozenset(after if stamp == before else stamp for stamp in stamps))
            for key, (count, stamps) in self.crashes.items()
        }

    def settle(self):
        """Take in what operators did to the links and the files, and let everything serve that must."""
        self.settle_links()
        self._promote_all()
        self.note_good()

    def settle_links(self):
        """Take in what operators did to the links."""
        self.find_shares()
        leading: dict[Key, set] = {}
        for name, alias in self.followed.items():
            wish, stamp = self.wish(name), self.stamp(name)
            alias.stamp = stamp or alias.stamp
            if wish is None:
                continue
            leading.setdefault(wish, set()).add(stamp)
            if alias.unloaded not in (None, stamp):
                alias.unloaded = None
            if alias.refused not in (None, (wish, stamp)):
                alias.refused = None
        for key, stamps in leading.items():  # a link made since begins at zero
            if key in self.crashes and not stamps <= self.crashes[key][1]:
                del self.crashes[key]

    def _promote_all(self):
        for _ in range(4):
            for name, alias in self.followed.items():
                key = self.must_serve(name) if name in self.aliases else self.must_serve_by_share(name)
                if key not in (None, alias.serving):
                    alias.promote(key)
                    if key not in self.resident:
                        self.admit(key)
        followed = self.followed.values()
        kept = {alias.serving for alias in followed} | {one.previous for one in followed}
        self.resident &= kept

    def admit(self, key):
        """Note that a version was loaded."""
        self.resident.add(key)
        self.images[key] = 0
        self.colours[key] = self.disk[key[0]].colour

    def note_good(self):
        """Note what has proved itself."""
        for alias in self.aliases.values():
            key = alias.serving
            if key is not None and self.images[key] >= GOOD_IMAGES:
                alias.good = [key, *(one for one in alias.good if one != key)][:KEPT_GOOD]
                self.proved.add(key)
                self.crashes.pop(key, None)
        for share in self.shares.values():
            if share.serving is not None and self.images[share.serving] >= GOOD_IMAGES:
                self.proved.add(share.serving)
                self.crashes.pop(share.serving, None)

    def unload(self):
        for alias in self.followed.values():
            alias.unloaded, alias.refused = alias.stamp, alias.refused
            alias.served, alias.serving = alias.serving or alias.served, None
            alias.previous = None
        self.resident = set()

    def end_run(self, *, crashed, trying=None):
        """Note how a run ended. A crash counts for what was serving or being tried and had not proved itself."""
        served = {alias.serving for alias in self.followed.values()} - {None}
        used = served | ({trying} - {None})
        if used or self.proved:
            blamed = used - self.proved if crashed else set()
            acquitted = self.proved if crashed else self.proved | served
            kept = {
                key: crash
                for key, crash in self.crashes.items()
                if key not in acquitted | blamed and crash[0] >= CRASHES
            }
            for key in blamed:
                count, stamps = self.crashes.get(key, (0, frozenset()))
                leading = {alias.stamp for name, alias in self.followed.items() if self.wish(name) == key}
                kept[key] = (count + 1, stamps | leading)
            self.crashes = kept
        self.proved, self.resident, self.images = set(), set(), {}
        for alias in self.followed.values():
            alias.served, alias.serving, alias.refused = alias.serving, None, None
            alias.previous = alias.saved_previous

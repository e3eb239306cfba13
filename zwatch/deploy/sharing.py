"""Making, moving, ending and promoting a share: each by renames of its link, and never over an operator's move.

At most one share an alias counts, so a change of percentage is one rename, and at no moment are there two links. Who changes
percentage and version in one call needs two renames; in between, and after a crash there, the new version has the smaller of
both percentages, or the old version has the new, smaller one.
"""

import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zwatch.deploy import links
from zwatch.deploy.chains import LinkStamp, read_chain, stamp_of
from zwatch.deploy.durable import sync_directory
from zwatch.deploy.links import TEMPORARY_PREFIX, LinkNote, repoint
from zwatch.deploy.look import without_root
from zwatch.deploy.oserrors import is_missing
from zwatch.deploy.shares import ShareLink, parse_share
from zwatch.deploy.versions import is_version_directory, opened
from zwatch.errors import RepointError

_log = logging.getLogger(__name__)

_RENAME_NOREPLACE = 1  # linux/fs.h


@dataclass(frozen=True, slots=True)
class Placed:
    """A link as a call left it: its name, its text, and its stamp."""

    name: str
    text: str
    stamp: LinkStamp


def find_shares(root_fd: int, alias: str) -> list[ShareLink]:
    """Return the shares of an alias: the symlinks in the models root that are named so, by their percentage.

    Raises:
        OSError: the models root cannot be listed, or what has such a name cannot be looked at.
    """
    shares = []
    for name in os.listdir(root_fd):
        if (share := parse_share(name)) is not None and share.alias == alias:
            with _suppress_missing():  # it may have been removed since
                shares += [share] if _is_link(root_fd, name) else []
    return sorted(shares, key=lambda share: share.percent)


def make_share(root: Path, alias: str, version: str | None, percent: int, *, anew: bool = False) -> Placed:
    """Send `percent` of an alias's requests to a version: make the alias's share link, or move the one that there is. Without a
    version only the percentage is moved.

    What is already so stays as it is; with `anew` the link is made again all the same, so that a version which was refused is
    tried again.

    Raises:
        RepointError: there is no such alias or version, there are two shares, another process moved the link meanwhile (that
            change stays), or it may not be changed. The message says what to type.
    """
    wanted = ShareLink(alias, percent)
    with _changing(root, wanted.name) as root_fd:
        _check_alias(root_fd, alias)
        if version is not None and not is_version_directory(root_fd, version):
            raise RepointError(f"there is no version {version!r} under the models root")
        share = _the_share(root_fd, alias)
        if share is not None:
            _move(root_fd, share, wanted, version, anew=anew)
        elif version is not None:
            _make(root_fd, wanted, version)
        else:
            raise RepointError(
                f"{alias} has no share whose percentage could be moved; name the version, too: `zwatch share VERSION {percent}`"
            )
        return _placed(root_fd, wanted.name)


def end_share(root: Path, alias: str) -> list[ShareLink]:
    """Remove an alias's share, so that the alias's own version draws all; return what was removed. Of several, which are a
    fault, all are removed.

    Raises:
        RepointError: another process moved the link meanwhile (that change stays), or it may not be removed.
    """
    with _changing(root, f"the share of {alias}") as root_fd:
        shares = find_shares(root_fd, alias)
        for share in shares:
            _remove(root_fd, share, LinkNote.take(root_fd, share.name))
        if shares:
            _sync(root_fd, f"the share of {alias} was removed")
        return shares


def promote_share(root: Path, alias: str, stamp: LinkStamp | None = None) -> Placed:
    """Put an alias's share in the alias's place, by one rename: its version becomes the alias's. With a `stamp`, only if the share
    is still the link of that stamp.

    Raises:
        RepointError: there is no share, there are two, another process moved it meanwhile (that change stays), or it may not be
            renamed.
    """
    with _changing(root, alias) as root_fd:
        share = _the_share(root_fd, alias)
        if share is None:
            raise RepointError(
                f"{alias} has no share to promote; `zwatch deploy VERSION` deploys a version without a trial"
            )
        if stamp is not None and stamp_of(read_chain(root_fd, share.name)) != stamp:
            raise RepointError(f"{share.name} was repointed by another process; that change stays")
        _check_alias(root_fd, alias, may_be_missing=True)
        note = LinkNote.take(root_fd, share.name)
        try:
            os.rename(share.name, alias, src_dir_fd=root_fd, dst_dir_fd=root_fd)
        except OSError as error:
            raise _not_writable(error, f"mv -T {share.name} {alias}") from None
        _sync(root_fd, f"{share.name} became {alias}")
        if LinkNote.take(root_fd, alias) != note:
            raise RepointError(f"{alias} was repointed by another process; that change stays")
        return _placed(root_fd, alias)


@contextmanager
def _changing(root: Path, what: str) -> Iterator[int]:
    """Open the models root, and raise what the system says as a RepointError."""
    try:
        with opened(root) as root_fd:
            yield root_fd
    except OSError as error:
        why = without_root(root, error) or error.strerror
        raise RepointError(f"{what} could not be changed: {why}") from None


def _check_alias(root_fd: int, alias: str, *, may_be_missing: bool = False) -> None:
    """Raise RepointError if an alias is no link."""
    try:
        chain = read_chain(root_fd, alias)
    except FileNotFoundError:
        if may_be_missing:
            return
        raise RepointError(
            f"there is no link {alias}, of which a share could be made; make it first: `ln -s VERSION {alias}`"
        ) from None
    if not chain:
        raise RepointError(f"{alias}: expected a symlink, found something else with that name; move it away")


def _the_share(root_fd: int, alias: str) -> ShareLink | None:
    """Return the one share of an alias; None if it has none."""
    shares = find_shares(root_fd, alias)
    if len(shares) > 1:
        names = " and ".join(share.name for share in shares)
        commands = " or ".join(f"`rm {share.name}`" for share in shares)
        raise RepointError(f"{alias} has several shares, {names}, so none counts; remove all but one: {commands}")
    return shares[0] if shares else None


def _make(root_fd: int, wanted: ShareLink, version: str) -> None:
    _check_free(root_fd, wanted)
    repoint(root_fd, wanted.name, version, None)
    others = [share for share in find_shares(root_fd, wanted.alias) if share != wanted]
    if others:  # made at the same moment: theirs stays
        with _suppress_missing():
            _remove(root_fd, wanted, LinkNote.take(root_fd, wanted.name))
        raise RepointError(f"{others[0].name} was made by another process; that share stays")


def _move(root_fd: int, share: ShareLink, wanted: ShareLink, version: str | None, *, anew: bool) -> None:
    """Move the one share. While both change, the version that is new to the clients has the smaller percentage."""
    note = _noted(root_fd, share)
    replaces = version is not None and (anew or not _leads_to(root_fd, share, version))
    if wanted != share:
        _check_free(root_fd, wanted)
    if replaces and wanted.percent >= share.percent:
        assert version is not None
        repoint(root_fd, share.name, version, note)
        note, replaces = _noted(root_fd, share), False
        if note.text != version:
            raise _moved(share, "repointed")
    if wanted != share:
        _rename(root_fd, share, wanted, note)
    if replaces:
        assert version is not None
        repoint(root_fd, wanted.name, version, note)


def _noted(root_fd: int, share: ShareLink) -> LinkNote:
    try:
        return LinkNote.take(root_fd, share.name)
    except FileNotFoundError:
        raise _moved(share, "removed") from None


def _leads_to(root_fd: int, share: ShareLink, version: str) -> bool:
    try:
        here, there = os.stat(share.name, dir_fd=root_fd), os.stat(version, dir_fd=root_fd)
    except OSError:
        return False
    return os.path.samestat(here, there)


def _check_free(root_fd: int, wanted: ShareLink) -> None:
    """Raise RepointError if something has the name that a share is to get, and is no link."""
    try:
        if not _is_link(root_fd, wanted.name):
            raise RepointError(f"{wanted.name}: expected a symlink, found something else with that name; move it away")
    except FileNotFoundError:
        pass


def _rename(root_fd: int, share: ShareLink, wanted: ShareLink, note: LinkNote) -> None:
    """Give the noted link its new name. What was moved under it meanwhile goes back."""
    if _noted(root_fd, share) != note:
        raise _moved(share, "repointed")
    try:
        _rename_to_free(root_fd, share.name, wanted.name)
    except FileNotFoundError:
        raise _moved(share, "removed") from None
    except FileExistsError:
        raise RepointError(f"{wanted.name} was made by another process; that change stays") from None
    except OSError as error:
        raise _not_writable(error, f"mv -T {share.name} {wanted.name}") from None
    _sync(root_fd, f"{share.name} became {wanted.name}")
    if LinkNote.take(root_fd, wanted.name) != note:
        _rename_back(root_fd, wanted.name, share.name)
        raise _moved(share, "repointed")


def _remove(root_fd: int, share: ShareLink, note: LinkNote) -> None:
    """Remove the noted link. It gets a temporary name first, so that what is removed can be looked at."""
    temporary = f"{TEMPORARY_PREFIX}{share.name}-{secrets.token_hex(6)}"
    try:
        _rename_to_free(root_fd, share.name, temporary)
    except FileNotFoundError:
        return  # it is gone
    except OSError as error:
        raise _not_writable(error, f"rm {share.name}") from None
    if LinkNote.take(root_fd, temporary) != note:
        _rename_back(root_fd, temporary, share.name)
        raise _moved(share, "repointed")
    try:
        links.persistently(lambda: os.unlink(temporary, dir_fd=root_fd))
    except OSError as error:
        _rename_back(root_fd, temporary, share.name)
        raise _not_writable(error, f"rm {share.name}") from None


def _rename_to_free(root_fd: int, source: str, destination: str) -> None:
    """Rename to a name that nothing has.

    Raises:
        FileExistsError: something has it. Where there is no such call, one made in the same moment is replaced.
        OSError: it cannot be renamed.
    """
    if links.renameat2(root_fd, source, destination, _RENAME_NOREPLACE):
        return
    try:
        os.stat(destination, dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(source, destination, src_dir_fd=root_fd, dst_dir_fd=root_fd)
        return
    raise FileExistsError(f"{destination} exists")


def _rename_back(root_fd: int, source: str, destination: str) -> None:
    """Put an operator's link back, unless there is a newer one."""
    try:
        _rename_to_free(root_fd, source, destination)
    except FileExistsError:
        with _suppress_missing():
            os.unlink(source, dir_fd=root_fd)


@contextmanager
def _suppress_missing() -> Iterator[None]:
    """Let it pass that nothing is there."""
    try:
        yield
    except OSError as error:
        if not is_missing(error):
            raise


def _is_link(root_fd: int, name: str) -> bool:
    """Say whether a name is that of a symlink.

    Raises:
        FileNotFoundError: nothing has it.
        OSError: that could not be found out.
    """
    return stat.S_ISLNK(os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_mode)


def _placed(root_fd: int, name: str) -> Placed:
    try:
        chain = read_chain(root_fd, name)
    except FileNotFoundError:
        chain = []
    if not chain:
        raise RepointError(f"{name} was removed by another process; that change stays")
    return Placed(name, chain[0].text, stamp_of(chain))


def _moved(share: ShareLink, how: str) -> RepointError:
    return RepointError(f"{share.name} was {how} by another process; that change stays")


def _not_writable(error: OSError, command: str) -> RepointError:
    return RepointError(f"the models root may not be written ({error.strerror}); type `{command}`")


def _sync(root_fd: int, what: str) -> None:
    try:
        sync_directory(root_fd)
    except OSError as error:
        _log.warning(
            "%s, but after a power failure it may not be so: syncing the models root failed: %s", what, error.strerror
        )

"""Waiting on a replica's host for a version that the controller's host has: a synchronised copy may come a little later."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.deploy import seal
from zwatch.deploy.look import open_version
from zwatch.deploy.oserrors import is_missing
from zwatch.deploy.resolving import Directory
from zwatch.errors import Rejection

if TYPE_CHECKING:
    from zwatch.shadow.control import LoadControl

_LOOK_SECONDS = 0.25


def await_version(root: Path, version: str, digest: str, seconds: float, control: "LoadControl") -> Directory:
    """Open a version once its seal has a digest and every file that the seal names is there, for which it may take so many seconds.

    Raises:
        Rejection: it was not there in time; with what was found last.
        Abandoned: `control` was told to abandon the load.
        OSError: what is there cannot be read.
    """
    end = time.monotonic() + seconds
    while True:
        found = _look(root, version, digest, control)
        if isinstance(found, Directory):
            return found
        if time.monotonic() >= end:
            raise Rejection(
                found.code,
                f"{found.reason}; this host did not have the version {seconds:g} s after the controller's host",
            )
        control.begin(f"waiting for {version} in {root}: {found.reason}")
        time.sleep(_LOOK_SECONDS)


def _look(root: Path, version: str, digest: str, control: "LoadControl") -> Directory | Rejection:
    """Return the opened version, or what is missing of it."""
    try:
        directory = open_version(root, version)
    except Rejection as rejection:
        return rejection
    except OSError as error:
        if not is_missing(error):
            raise
        return Rejection("file_missing", f"{version}: there is no such directory in {root}")
    try:
        problem = _missing(directory, digest, control)
    except BaseException:
        directory.close()
        raise
    if problem is None:
        return directory
    directory.close()
    return problem


def _missing(directory: Directory, digest: str, control: "LoadControl") -> Rejection | None:
    try:
        sealed = seal.read_seal(directory.fd)
    except Rejection as rejection:
        return rejection
    if sealed.digest != digest:
        return Rejection(
            "seal_changed",
            f"{directory.version}/{seal.SEAL_NAME}: its digest here is {sealed.digest}, expected the {digest} that the controller's "
            "host has",
        )
    for path, stamp in directory.file_stamps(list(sealed.files), control.check).items():
        if stamp is None:
            return Rejection("file_missing", f"{directory.version}/{path}: the seal names it, it is not there")
    return None

"""Who signed each version of a models root, judged anew only where something changed on which that depends."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zwatch.deploy.look import open_version
from zwatch.deploy.seal import SEAL_NAME, SIGNATURE_NAME
from zwatch.errors import Rejection, UsageError
from zwatch.signing.check import check
from zwatch.signing.policy import Policy, files_of, read_policy

SIGNATURE_CODES = frozenset({"signature_missing", "signature_invalid", "signer_not_allowed", "policy_invalid"})
"""The codes of rejections that a signature or the policy may lift."""
_KEPT_SECONDS = 300.0
"""A certificate whose statement says no time of signing is judged at the present time, which no file's change tells."""
_Stamp = tuple[int, ...]


class Summary(Protocol):
    """What is judged: a version, or a LoRA."""

    @property
    def name(self) -> str:
        """The directory's name."""

    @property
    def digest(self) -> str | None:
        """The digest of the seal, if it has one."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A judgement, the stamps of the policy's files and of the version's own, and when it was made."""

    policy: Sequence[_Stamp]
    stamps: Sequence[_Stamp]
    verdict: str | Rejection
    at: float


@dataclass(frozen=True, slots=True)
class _PolicyLook:
    """The files that a policy depends on, their stamps, and why it cannot be used, None if it can."""

    files: Sequence[str] = ()
    stamps: Sequence[_Stamp] = ()
    fault: str | None = None


class Judgements:
    """What the policy says of versions. A judgement is kept while the seal, the signature and the policy with all files that it
    names stay as they are, and while its version is there.

    It blocks; run it in a thread. Two threads may use it: at worst both verify what one would have.
    """

    def __init__(self, policy_file: Path) -> None:
        self._path = policy_file
        self._seen = _PolicyLook()
        self._known: Mapping[tuple[str, str | None], _Known] = {}

    def look(self) -> str | None:
        """Return why the policy cannot be used, None if it can. It is read only if it or a file that it names changed."""
        return self._look().fault

    def _look(self) -> _PolicyLook:
        seen = self._seen
        if not seen.files or [_stamp(path) for path in seen.files] != seen.stamps:
            # Stamped before it is read: what changes meanwhile is read again at the next look.
            files = files_of(self._path) or [os.path.abspath(self._path)]
            stamps, fault = [_stamp(path) for path in files], None
            try:
                read_policy(self._path)
            except UsageError as error:
                fault = f"{error}; no version can be loaded until it can be read"
            self._seen = seen = _PolicyLook(files, stamps, fault)
        return seen

    def judge(self, root: Path, versions: Iterable[Summary], prefix: str = "") -> dict[str, str | Rejection]:
        """Return of each version who signed it, or why the policy does not allow it; nothing of one that cannot be read. `prefix`
        goes before the names where the policy has them."""
        seen, before, now = self._look(), self._known, dict[tuple[str, str | None], _Known]()
        if seen.fault is not None:
            return {one.name: Rejection("policy_invalid", seen.fault) for one in versions}
        found: dict[str, str | Rejection] = {}
        policy: Policy | None = None
        for one in versions:
            key, own = (one.name, one.digest), [_stamp(root / one.name / file) for file in (SEAL_NAME, SIGNATURE_NAME)]
            known = before.get(key)
            is_kept = known is not None and (known.policy, known.stamps) == (seen.stamps, own)
            if known is None or not is_kept or time.monotonic() - known.at > _KEPT_SECONDS:
                try:
                    policy = policy or read_policy(self._path)
                    known = _Known(seen.stamps, own, _judged(policy, root, one, prefix), time.monotonic())
                except UsageError as error:  # it changed just now, or a library is missing
                    known = _Known(seen.stamps, own, Rejection("policy_invalid", str(error)), time.monotonic())
                except OSError:
                    continue
            now[key], found[one.name] = known, known.verdict
        self._known = now
        return found


def _judged(policy: Policy, root: Path, one: Summary, prefix: str) -> str | Rejection:
    try:
        with closing(open_version(root, one.name)) as directory:
            return check(policy, directory.fd, f"{prefix}{one.name}", one.digest)
    except Rejection as rejection:
        return rejection.with_traceback(None)  # it is kept


def _stamp(path: str | Path) -> _Stamp:
    """Return what changes with a file's content or place, or the error's number; of a link, that of the link itself: what it
    leads to has its own."""
    try:
        found = os.lstat(path)
    except (OSError, ValueError) as error:
        return (getattr(error, "errno", None) or 0,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

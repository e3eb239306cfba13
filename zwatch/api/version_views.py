"""Versions on disk as JSON objects: what they are, what the service does with them, and why one was rejected."""

from collections.abc import Callable, Mapping
from typing import Annotated, NamedTuple

from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.provenance_view import ProvenanceView, provenance_view
from zwatch.api.schema import ByteCount, Digest, Number, SignerName, Time, VersionName, choice
from zwatch.api.views import time_text
from zwatch.deploy.versions import VersionSummary
from zwatch.errors import REJECTION_CODES
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.supervisor import Supervisor
from zwatch.rollout.uses import USES, uses
from zwatch.rollout.verdicts import Verdict


class RejectedView(TypedDict):
    """Why the version was rejected when it was tried last."""

    code: Annotated[str, choice(*REJECTION_CODES)]
    reason: str
    when: Time


class VersionView(TypedDict):
    """A version directory. `uses` says what the service needs it for: `zwatch prune` keeps it."""

    name: VersionName
    sealed: bool
    digest: Digest | None
    signer: SignerName | None
    header_version: str | None
    bytes: ByteCount
    files: Number
    resident: bool
    serving: bool
    aliases: list[str]
    sealed_at: Time | None
    seal_changed_ns: Annotated[
        str | None,
        Field(description="The seal's ctime, nanoseconds: `zwatch prune` tells a copy of the models root by it."),
    ]
    problem: str | None
    rejected: RejectedView | None
    uses: Annotated[list[Annotated[str, choice(*USES)]], Field(description="Why `zwatch prune` keeps it.")]
    provenance: ProvenanceView | None


class VersionMarks(NamedTuple):
    """What the service does with a version."""

    resident: bool = False
    serving: bool = False
    aliases: tuple[str, ...] = ()
    uses: tuple[str, ...] = ()


def version_marks(supervisor: Supervisor, engines: EngineRegistry) -> dict[str, VersionMarks]:
    """Return the marks of each version that the service needs or that an alias or a share points to, by name."""
    aliases: dict[str, tuple[str, ...]] = {}
    for key, record in supervisor.records.items():
        if (target := supervisor.seen.targets.get(key)) is not None:
            aliases[target.version] = (*aliases.get(target.version, ()), record.name)
    found: dict[str, list[str]] = {name: [] for name in aliases} | uses(supervisor, engines)
    return {
        name: VersionMarks("resident" in those, "serving" in those, aliases.get(name, ()), tuple(those))
        for name, those in found.items()
    }


FindVerdict = Callable[[str, str | None], Verdict | None]
"""Returns why a version with a digest was rejected."""


def version_view(
    summary: VersionSummary, marks: Mapping[str, VersionMarks], verdict: FindVerdict, signer: str | None = None
) -> VersionView:
    """Return a version directory, with its residency, its aliases, and why it was rejected, which `verdict` knows. `signer` is who
    signed it, as was just verified."""
    mark, rejected = marks.get(summary.name, VersionMarks()), verdict(summary.name, summary.digest)
    return {
        "name": summary.name,
        "sealed": summary.sealed,
        "digest": summary.digest,
        "signer": signer,
        "header_version": summary.header_version,
        "bytes": summary.bytes,
        "files": summary.files,
        "resident": mark.resident,
        "serving": mark.serving,
        "aliases": list(mark.aliases),
        "sealed_at": None if summary.sealed_at is None else time_text(summary.sealed_at),
        "seal_changed_ns": None if summary.seal_changed_ns is None else str(summary.seal_changed_ns),
        "problem": summary.problem,
        "rejected": None
        if rejected is None
        else {"code": rejected.code, "reason": rejected.reason, "when": time_text(rejected.when)},
        "uses": list(mark.uses),
        "provenance": provenance_view(summary.provenance),
    }

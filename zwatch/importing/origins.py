"""What the provenance of an imported version says: where all of it came from, and what its ancestors said of themselves."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import datetime

from zwatch.deploy import provenance
from zwatch.deploy.provenance import Provenance
from zwatch.errors import Refused, Rejection
from zwatch.importing import reading
from zwatch.importing.bases import Base
from zwatch.importing.plans import Ancestors, Plan, Wish
from zwatch.importing.sources import Found

_UNKNOWN = "0" * 64
_LONGEST_LICENCE = 200
_LONGEST_NOTE = 2000


def stated(found: Found) -> Provenance:
    """Return what the `zwatch.json` of a source says; nothing if it has none.

    Raises:
        Refused: it is not valid.
        OSError: it cannot be read.
    """
    own = found.small.get(provenance.NAME)
    if own is None:
        return Provenance()
    try:
        return provenance.parse(reading.read_whole(own))
    except Rejection as rejection:
        raise Refused(f"{own.path}: {rejection.reason}; mend it or remove it") from None


def gives(plan: Plan, base: Base | None) -> bool:
    """Say whether anything of a plan comes from the base."""
    if base is None:
        return False
    of_base = {file.path for file in base.files.values()}
    return bool(plan.shared) or any(file.path in of_base for output in plan.outputs for file in output.sources)


def made(
    plan: Plan, found: Found, base: Base | None, wish: Wish, hashes: Mapping[str, str], tools: Mapping[str, str], created: datetime | None
) -> Provenance:  # fmt: skip
    """Return the provenance of a version. `hashes` are the blake3 of the files that were read, by path."""
    ancestors, own = plan.ancestors, plan.ancestors.source.source
    others = {file.path for file, _ in found.loras} | (
        set() if base is None else {file.path for file in base.files.values()}
    )
    files = {
        file.name: hashes[str(file.path)]
        for output in plan.outputs
        for file in output.sources
        if file.path not in others
    }
    merged = [provenance.MergedLora(file.path.name, hashes[str(file.path)], scale) for file, scale in plan.loras]
    loras = (*ancestors.transformer.loras, *merged)
    kind = "lora" if len(plan.loras) > len(found.loras) else found.kind
    repository, revision = found.repository, found.revision
    if repository is None and revision is None and own is not None:
        repository, revision = own.repository, own.revision
    return Provenance(
        default_size=ancestors.default_size,
        source=provenance.Source(kind, _name(found), repository, revision, files),
        base=provenance.Base(base.name, base.digest) if base is not None and gives(plan, base) else None,
        loras=loras, conversions=tuple(plan.conversions), tools=tools, created=created,
        licence=_licence(found, ancestors), quantization=plan.quantization, note=_note(plan.remarks, ancestors),
    )  # fmt: skip


def check(plan: Plan, found: Found, base: Base | None, wish: Wish) -> None:
    """Check, before anything is written, that the provenance can be.

    Raises:
        Refused: a file's name cannot be written down.
    """
    for path in [found.path, *(file.path for output in plan.outputs for file in output.sources)]:
        try:
            str(path).encode()
        except UnicodeEncodeError:
            raise Refused(f"{os.fsencode(path)!r}: the name is not UTF-8, so zwatch.json cannot have it; rename it") from None  # fmt: skip
    try:
        provenance.format(made(plan, found, base, wish, defaultdict(lambda: _UNKNOWN), {}, None))
    except Rejection as rejection:
        raise Refused(f"{str(found.path)!r}: its name, or that of a file in it, cannot be written down: {rejection.reason}; rename it") from None  # fmt: skip


def _name(found: Found) -> str:
    # A file of a hub's cache is a link to one that is named by its hash.
    return (found.path.resolve() if found.path.is_dir() else found.path).name


def _licence(found: Found, ancestors: Ancestors) -> str | None:
    """Return the licences of all that a version is made of."""
    stated = _distinct([found.licence or ancestors.source.licence, ancestors.base.licence])
    joined = " and ".join(stated)
    return (joined if len(joined) <= _LONGEST_LICENCE else stated[0]) or None


def _note(remarks: Iterable[str], ancestors: Ancestors) -> str | None:
    """Return what was remarked now, then what the ancestors' notes say, and the base's origin, which has no key of its own."""
    notes = [*remarks, ancestors.source.note]
    of_base = [ancestors.base.note]
    origin = ancestors.base.source
    if origin is not None and (origin.repository or origin.revision):
        of_base.append(f"from {' at '.join(one for one in (origin.repository, origin.revision) if one)}")
    notes += [f"{ancestors.base_name}: {one}" for one in of_base if one]
    return "; ".join(_distinct(notes))[:_LONGEST_NOTE] or None


def _distinct(texts: Iterable[str | None]) -> list[str]:
    return list(dict.fromkeys(one for one in texts if one))

"""`zwatch import FILE NAME --lora`: from a trainer's file to a sealed LoRA in the LoRA root, in one rename."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.deploy import header, loras, provenance
from zwatch.deploy.header import VERSION_KEY
from zwatch.deploy.signals import Ending
from zwatch.errors import Refused, Rejection
from zwatch.importing import layouts, origins, pieces, reading, run, sources, weights
from zwatch.importing.layouts.lora import Lora
from zwatch.importing.plans import Plan, Wish
from zwatch.importing.room import Say
from zwatch.importing.sources import Found
from zwatch.progress import Progress

if TYPE_CHECKING:
    from zwatch.signing.keys import SigningKey

_MOST_NAMED = 3
"""Matrices that do not fit, in a sentence."""


def run_lora(
    source: Path, root: Path, models: Path, wish: Wish, say: Say, ending: Ending, key: "SigningKey | None" = None
) -> run.Imported:
    """Import a LoRA into the LoRA root, which is made if it is not there, and say whether it fits what `current` leads to.

    Raises:
        Refused: it cannot be imported, with the reason and what to do.
        OSError: a file could not be read or written.
        KeyboardInterrupt: it was interrupted.
    """
    with Progress("importing") as progress:
        progress.step("looking at the source")
        found = run.watching(sources.find_lora(source))
        plan = make(found, wish)
    made = run.carry_out(plan, root, found, None, wish, say, ending, key)
    if (note := _fit(models, made.directory)) is not None:
        say(note)
    say(f'requests use it by its name: "loras": [{{"name": "{wish.name}", "scale": 1.0}}]')
    return replace(made, kind="lora")


def _fit(models: Path, directory: Path) -> str | None:
    """Say whether a LoRA fits the version that `current` leads to; None if that cannot be found out: requests are told."""
    current, own = models / "current", dict[str, tuple[int, ...]]()
    try:
        for path in sorted((current / "transformer").glob("*.safetensors")):
            own |= {
                name: info.shape for name, info in reading.read_header(reading.find(path, path.name)).tensors.items()
            }
        lora = loras.LoraRoot(directory.parent).open_lora(directory.name)
        lora.close()
        version = current.resolve().name
    except (OSError, RuntimeError, Refused, Rejection):
        return None
    wrong = [
        f"{module} is {list(own.get(f'{module}.weight', ())) or 'not there'}, the LoRA is for {[one.rows, one.columns]}"
        for module, one in lora.matrices.items()
        if own.get(f"{module}.weight") != (one.rows, one.columns)
    ]
    if not own:
        return None
    if not wrong:
        return f"it fits {version}, which {current} leads to"
    more = f" and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
    return f"it does not fit {version}, which {current} leads to: {'; '.join(wrong[:_MOST_NAMED])}{more}"


def make(found: Found, wish: Wish) -> Plan:
    """Return the plan for a LoRA.

    Raises:
        Refused: it is no LoRA that requests can use.
        OSError: it cannot be read.
    """
    [file] = found.files
    read, config = reading.read_header(file), weights.adapter_config(file)
    try:
        translation = layouts.alone(Lora(read.tensors, read.metadata, 1.0, config))
    except Rejection as rejection:
        raise Refused(f"{file.path}: {rejection.reason}") from None
    plan = Plan(notes=list(found.notes), remarks=[translation.layout, *translation.notes], is_lora=True)
    before = " and ".join(sorted({info.dtype for info in read.tensors.values()}))
    plan.conversions.append(
        provenance.Conversion("lora", f"{translation.layout}, {before}"[:200], "diffusers' layout, alpha in B")
    )
    table = {name: (file, info) for name, info in read.tensors.items()}
    metadata = {"format": "pt", VERSION_KEY: wish.name}
    layout = f"{translation.layout} {config!r} {read.metadata!r}"  # part of what decides about the bytes
    plan.outputs.append(pieces.file_of(header.LORA, translation.made, table, {}, metadata, layout))
    origins.check(plan, found, None, wish)
    return plan

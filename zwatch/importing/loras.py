"""`zwatch import FILE NAME --lora`: from a trainer's file to a sealed LoRA in the LoRA root, in one rename."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.deploy import header, provenance
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


def run_lora(
    source: Path, root: Path, wish: Wish, say: Say, ending: Ending, key: "SigningKey | None" = None
) -> run.Imported:
    """Import a LoRA into the LoRA root, which is made if it is not there.

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
    say(f'requests use it by its name: "loras": [{{"name": "{wish.name}", "scale": 1.0}}]')
    return replace(made, kind="lora")


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

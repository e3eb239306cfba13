"""Golden images of what a version is made from: which of them go along, and with which floors.

They say what one transformer draws with one text encoder and one VAE. A version with another of them, or with a LoRA merged, draws
something else, and gets none. A quantized version shall draw the same, as far as its precision goes: it keeps them, with lower floors.
"""

import os
from collections.abc import Collection

from zwatch.deploy import golden, pipeline_files
from zwatch.errors import Refused, Rejection
from zwatch.importing import pieces, reading
from zwatch.importing.bases import Base
from zwatch.importing.plans import Plan
from zwatch.importing.sources import Found

_DRAWING = frozenset(pipeline_files.WEIGHTS) - {pipeline_files.CONTROLNET}
"""The components with weights that draw a golden image."""


def add(plan: Plan, found: Found, base: Base | None, of_source: Collection[str]) -> None:
    """Add a source's golden images to the plan if all that draws them is the source's; else say that they are left out.
    `of_source` are the components whose weights are the source's.

    Raises:
        Refused: an image is not as golden.json says, or a file changed.
        OSError: it cannot be read.
    """
    if base is not None and base.golden and set(of_source) == {pipeline_files.CONTROLNET} and not plan.loras:
        plan.shared |= base.golden  # without a control image, the new version draws the same
        plan.small[golden.NAME] = reading.read_whole(base.golden[golden.NAME])
    elif base is not None and base.golden:
        plan.notes.append(f"the golden images of {base.name} are left out: {_other(plan, of_source)}; {_make(plan)}")
    if not found.golden:
        return
    if plan.loras or not set(of_source) >= _DRAWING:
        plan.notes.append(f"the golden images of the source are left out: {_other(plan, of_source)}; {_make(plan)}")
        return
    data = reading.read_whole(found.golden[golden.NAME])
    try:
        for picture in golden.parse(data):
            file = found.golden[picture.image]
            with reading.opened(file) as fd:
                golden.check_image(picture, os.pread(fd, golden.HEADER_BYTES, 0), file.identity.size)
    except Rejection as rejection:
        raise Refused(f"{found.path}: {rejection.reason}") from None
    plan.outputs += [pieces.copy_of(path, file) for path, file in sorted(found.golden.items())]
    plan.small[golden.NAME] = data


def _other(plan: Plan, of_source: Collection[str]) -> str:
    if plan.loras:
        return "a LoRA is merged, so that the new version draws something else"
    given = sorted(set(of_source) & _DRAWING)
    return f"of what draws them, only {', '.join(given) or 'nothing'} is the source's"


def _make(plan: Plan) -> str:
    return "make its own with `zwatch golden NAME --prompts FILE`"


def add_to_quantized(plan: Plan, base: Base, kind: str) -> None:
    """Add a version's golden images to the plan of what is quantized of it, with floors that a right quantization reaches.

    Raises:
        Refused: golden.json changed.
        OSError: it cannot be read.
    """
    if not base.golden:
        return
    pictures = golden.parse(reading.read_whole(base.golden[golden.NAME]))
    lowered = tuple(golden.for_quantized(picture, kind) for picture in pictures)
    plan.shared |= {path: file for path, file in base.golden.items() if path != golden.NAME}
    plan.texts[golden.NAME] = golden.format_json(lowered)
    least_psnr, least_ssim = golden.QUANTIZED_FLOORS[kind]
    plan.notes.append(
        f"the golden images of {base.name} go along and judge the quantization: their floors are {least_psnr:g} dB and SSIM "
        f"{least_ssim:g}, or lower where they were"
    )

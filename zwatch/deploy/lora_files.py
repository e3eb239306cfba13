"""LoRAs on disk: sealed directories under the LoRA root, each with the factors of one LoRA in one layout.

    loras/ink/lora.safetensors    for each matrix that it changes `<module>.lora_A.weight` (rank, in) and `<module>.lora_B.weight` (out, rank)
    loras/ink/zwatch.json         where it came from
    loras/ink/BLAKE3SUMS          the seal, as a version has it

`<module>` is the name of the transformer's weight without `.weight`, as diffusers has it. A LoRA adds scale * B @ A to the weight:
alpha is in B already. All tensors have one dtype. The header's `version` is the directory's name. `zwatch import FILE NAME --lora`
makes such a directory of what trainers write.
"""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from zwatch.deploy import contents, header, pipeline_files, provenance, seal
from zwatch.deploy.header import Header
from zwatch.errors import Rejection

WEIGHTS = header.LORA
PREFIX = "lora/"
"""What the name of a LoRA begins with where versions have names, too: in a signature's policy."""
DTYPES = ("BF16", "F16", "F32")
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<kind>[AB])\.weight")
HINT = "`zwatch import FILE NAME --lora` makes such a file of what trainers write"


@dataclass(frozen=True, slots=True)
class Matrix:
    """What a LoRA has for one matrix of the transformer, of shape (rows, columns): factors of this rank."""

    rank: int
    rows: int
    columns: int


def is_lora_directory(directory: Path) -> bool:
    """Say whether a directory is a LoRA's rather than a version's."""
    return os.path.lexists(directory / WEIGHTS) and not os.path.lexists(directory / pipeline_files.INDEX)


def matrices(found: Header, path: str = WEIGHTS) -> dict[str, Matrix]:
    """Return what a LoRA has for each matrix, from the header of its factors.

    Raises:
        Rejection: `weights_mismatch`: it is not laid out as described above.
    """
    factors: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, info in found.tensors.items():
        match = _FACTOR.fullmatch(name)
        if match is None:
            raise _mismatch(f"{path}: {name[:200]!r} is no factor of a LoRA, expected MODULE.lora_A.weight and MODULE.lora_B.weight; {HINT}")  # fmt: skip
        factors.setdefault(match["module"], {})[match["kind"]] = info.shape
    if not factors:
        raise _mismatch(f"{path}: it has no tensors, expected the factors of a LoRA; {HINT}")
    if len(dtypes := sorted({info.dtype for info in found.tensors.values()})) > 1 or dtypes[0] not in DTYPES:
        raise _mismatch(f"{path}: its tensors are {' and '.join(dtypes)}, expected one of {', '.join(DTYPES)}; {HINT}")
    return {module: _matrix(path, module, shapes) for module, shapes in factors.items()}


def _matrix(path: str, module: str, shapes: Mapping[str, tuple[int, ...]]) -> Matrix:
    down, up = shapes.get("A"), shapes.get("B")
    if down is None or up is None:
        raise _mismatch(f"{path}: {module[:200]!r} has only its lora_{'B' if down is None else 'A'}, the other factor is missing")  # fmt: skip
    if len(down) != 2 or len(up) != 2 or down[0] != up[1] or 0 in (*down, *up):
        raise _mismatch(f"{path}: {module[:200]!r}: lora_A {list(down)} and lora_B {list(up)} do not fit each other, expected (rank, in) and (out, rank)")  # fmt: skip
    return Matrix(down[0], up[0], down[1])


def _mismatch(reason: str) -> Rejection:
    return Rejection("weights_mismatch", reason)


def select(names: Iterable[str]) -> pipeline_files.Selection:
    """Select what a LoRA needs from the relative paths of all files of its directory."""
    there = set(names)
    needed = there & {WEIGHTS, provenance.NAME}
    return pipeline_files.Selection(tuple(sorted(needed)), dict.fromkeys(sorted(there - needed), "nothing reads it"))


def check_files(directory_fd: int) -> dict[str, Header]:
    """Check the files of a LoRA that will be sealed, and return the header of its factors by their path.

    Raises:
        Rejection: they are no LoRA's, or a pointer of Git LFS.
        OSError: a file could not be read.
    """
    with seal.opened_file(directory_fd, WEIGHTS) as fd:
        contents.check_no_pointer(fd, WEIGHTS)
        found = header.read_header(fd, WEIGHTS)
    matrices(found)
    return {WEIGHTS: found}


def check_header(found: Header, name: str, path: str = WEIGHTS) -> dict[str, Matrix]:
    """Check the header of a LoRA's factors, and that it has the LoRA's name; return what it has for each matrix.

    Raises:
        Rejection: `weights_mismatch` or `version_mismatch`.
    """
    made = matrices(found, path)
    header.check_version(found, name, path)
    return made

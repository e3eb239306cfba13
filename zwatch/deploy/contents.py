"""What the first bytes of a pipeline's files tell before anything is sealed: what cannot serve, and what to do about it."""

import os
import re
from collections.abc import Collection, Iterable, Mapping

from zwatch.deploy import golden, header, pipeline_files, seal
from zwatch.deploy.pipeline_files import WEIGHTS, lora
from zwatch.errors import Rejection

_LFS = b"version https://git-lfs.github.com/spec/"
_LONGEST_POINTER = 1024
"""Of Git LFS's specification, bytes."""
_LORA_TENSOR = re.compile(r"(^|[._])(lora_(A|B|up|down|mid)|lora\.(up|down)|hada_w[12]|lokr_w[12])([._]|$)")
_COMPUTED = ("BF16", "F16", "F32")
SCALE = "weight_scale"
"""What the scales of the rows of a quantized `….weight` are called: float32, shape (rows, 1)."""
_QUANTIZED = ("F8_E4M3", "I8")
_FLOATS = re.compile(r"B?F\d+(_\w+)?")


def check(directory_fd: int, paths: Collection[str]) -> dict[str, header.Header]:
    """Check the files of a pipeline that will be sealed, and return the headers of its weights by path.

    Raises:
        Rejection: a file is no regular file, is a pointer of Git LFS, is no JSON though its name says so, or has weights that cannot be
            computed; or an image is not as golden.json says.
        OSError: a file could not be read.
    """
    headers = {}
    for path in paths:
        with seal.opened_file(directory_fd, path) as fd:
            check_no_pointer(fd, path)
            if path == golden.NAME:
                golden.check_files(directory_fd, seal.read_whole(fd), paths)
            elif pipeline_files.is_config(path):
                pipeline_files.check_config(path, seal.read_whole(fd))
            if path.endswith(header.WEIGHTS_SUFFIX):
                headers[path] = header.read_header(fd, path)
                if is_lora(headers[path]):
                    raise lora(path)
    for component in WEIGHTS:
        _check_dtypes({path: found for path, found in headers.items() if path.startswith(f"{component}/")})
    return headers


def check_left_out(directory_fd: int, paths: Iterable[str]) -> None:
    """Check that none of the weights that are left out is a LoRA: it would seem to be part of the version.

    Raises:
        Rejection: one is.
    """
    for path in paths:
        if path.endswith(header.WEIGHTS_SUFFIX) and not any(part.startswith(".") for part in path.split("/")):
            try:
                with seal.opened_file(directory_fd, path) as fd:
                    found = header.read_header(fd, path)
            except (Rejection, OSError):
                continue  # nothing reads it
            if is_lora(found):
                raise lora(path)


def scale_of(name: str) -> str:
    """Return the name of the scales of the quantized weight `name`."""
    return f"{name.removesuffix('weight')}{SCALE}"


def is_lora(found: header.Header) -> bool:
    """Say whether weights are a LoRA, by the names of their tensors."""
    return any(_LORA_TENSOR.search(name) for name in found.tensors)


def check_no_pointer(fd: int, path: str) -> None:
    """Check that an open file is itself there, not what Git LFS leaves in its place until it is downloaded.

    Raises:
        Rejection: it is such a pointer.
    """
    if os.fstat(fd).st_size <= _LONGEST_POINTER and os.pread(fd, len(_LFS), 0) == _LFS:
        raise Rejection(
            "file_missing",
            f"{path}: this is a pointer of Git LFS, the file itself was not downloaded; run `git lfs pull`",
        )


def _check_dtypes(headers: Mapping[str, header.Header]) -> None:
    """Check that all weights of a component have one dtype that is computed, as the engine does when it loads them; those that are
    quantized have scales instead."""
    scales = {name for found in headers.values() for name in found.tensors if name.endswith(f".{SCALE}")}
    first = ""
    for path, found in headers.items():
        for name, tensor in found.tensors.items():
            is_quantized = tensor.dtype in _QUANTIZED and scale_of(name) in scales
            if not _FLOATS.fullmatch(tensor.dtype) or is_quantized or name in scales:
                continue
            first = first or tensor.dtype
            if tensor.dtype not in _COMPUTED or tensor.dtype != first:
                what = "which is not computed" if tensor.dtype not in _COMPUTED else f"other weights are {first}"
                raise Rejection(
                    "weights_mismatch",
                    f"{path}: tensor {name[:200]!r} is {tensor.dtype}, {what}; all weights of a component must be the same, one of "
                    f"{', '.join(_COMPUTED)}. `zwatch import SOURCE NAME` converts them",
                )

"""Whether a LoRA fits a version: known from the header of its file, without torch."""

from collections.abc import Iterable, Mapping

from zwatch.deploy.loras import Matrix

_SHOWN = 3
"""Most layers that an error names."""

Shapes = Mapping[str, tuple[int, int]]
"""The shapes (out, in) of a network's linear layers by their paths."""


def misfit(matrices: Mapping[str, Matrix], shapes: Shapes) -> str | None:
    """Return what of a LoRA does not fit layers of these shapes, with names and shapes; None if all fits."""
    other = [
        f"{path} is {list(shapes[path])}, the LoRA is for {[matrix.rows, matrix.columns]}"
        for path, matrix in matrices.items()
        if path in shapes and shapes[path] != (matrix.rows, matrix.columns)
    ]
    missing = [
        f"there is no {path} {[matrix.rows, matrix.columns]}" for path, matrix in matrices.items() if path not in shapes
    ]
    return "; ".join([*_first(other), *_first(missing)]) or None


def _first(found: Iterable[str]) -> list[str]:
    listed = list(found)
    rest = len(listed) - _SHOWN
    return listed if rest <= 0 else [*listed[:_SHOWN], f"and {rest} more of its matrices"]

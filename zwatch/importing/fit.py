"""Whether weights fit their config: what is missing, unknown or of another shape. It imports torch and the engine."""

from collections.abc import Mapping
from pathlib import Path

from zwatch.errors import Refused, Rejection

Shapes = Mapping[str, tuple[int, ...]]
_MOST_NAMED = 8


def check(source: Path, small: Mapping[str, bytes], shapes: Mapping[str, Shapes]) -> None:
    """Check the small files of a pipeline from a source, and the tensors of its components against their configs, before they are written.

    Raises:
        Refused: with the list of differences.
    """
    from zwatch.engine import components

    found = []
    try:
        components.component_classes(small)
        for component, given in shapes.items():
            expected = components.shapes(component, {"config.json": small[f"{component}/config.json"]})
            found += _differences(component, components.as_loaded(component, given), expected)
    except Rejection as rejection:
        raise Refused(f"{source}: {rejection.reason}") from None
    if found:
        raise Refused(f"{source}: the weights do not fit:\n  " + "\n  ".join(found))


def _differences(component: str, given: Shapes, expected: Shapes) -> list[str]:
    """Return what differs, a line each kind."""
    both = sorted(given.keys() & expected.keys())
    shapes = [f"{name} {list(given[name])} instead of {list(expected[name])}" for name in both if given[name] != expected[name]]  # fmt: skip
    kinds = {
        "missing": sorted(expected.keys() - given.keys()),
        "unknown": sorted(given.keys() - expected.keys()),
        "of another shape than the config says": shapes,
    }
    return [f"{component}: {len(names)} {what}: {_named(names)}" for what, names in kinds.items() if names]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(name[:200] for name in names[:_MOST_NAMED]) + more

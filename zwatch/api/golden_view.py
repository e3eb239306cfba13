"""Golden images of an engine as a JSON object."""

from typing import TYPE_CHECKING

from typing_extensions import TypedDict

from zwatch.api.schema import Number

if TYPE_CHECKING:
    from zwatch.engine.golden import GoldenImages


class GoldenView(TypedDict):
    """How many golden images of a version were checked, of how many, and how many of these were missed."""

    checked: Number
    of: Number
    missed: Number


def golden_view(golden: "GoldenImages") -> GoldenView | None:
    """Return how far the check of golden images is, or null if there are none."""
    of = len(golden.pictures)
    return {"checked": golden.checked, "of": of, "missed": golden.missed} if of else None


def missed(golden: "GoldenImages") -> str | None:
    """Return how many golden images a version missed, to follow its name; None if it missed none."""
    return f"missed {golden.missed} of {golden.checked} golden images" if golden.missed else None

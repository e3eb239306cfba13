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

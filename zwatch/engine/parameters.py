"""What an engine is asked for and what it returns, for code that must not wait for torch."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zwatch.timeline import Phases

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """What images are made from, one per seed. Sizes in pixels, multiples of 16. `has_host_noise`: the noise is drawn on the
    processor, whose generator gives other numbers for a seed than that of a GPU, but the same beside every device."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seeds: tuple[int, ...]
    has_host_noise: bool = False


@dataclass(frozen=True, slots=True)
class Flaw:
    """Why an image is not usable: `kind` is `not_finite` or `one_colour`, `text` goes on after "the image"."""

    kind: str
    text: str


@dataclass(slots=True)
class Generation:
    """The result: images in the order of the seeds, whether the prompt was truncated, whether every pixel was a finite
    number (the images end with the first that has another), and seconds by phase."""

    images: "list[Image.Image]"
    truncated: bool
    finite: bool
    timings: dict[str, float]
    phases: Phases = field(default_factory=Phases)
    flaw: Flaw | None = None
    """Why its images are not usable, once that was found out."""

"""What an engine is asked for and what it returns, for code that must not wait for torch."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from zwatch.timeline import Phases

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, slots=True)
class InitialImage:
    """The image that is changed, RGB of any size, by `strength` from 0 (not at all) to 1; where there is a mask (L, of the image's
    size), only what is white in it, after a blur of so many pixels. `digest` is that of the image's file. `picture` is None once the
    images are made. `whole` is the width and height of the picture that the images become a part of, if they do."""

    picture: "Image.Image | None"
    mask: "Image.Image | None"
    strength: float
    mask_blur: int
    digest: str
    has_mask: bool
    whole: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class ControlImage:
    """The image that guides what is drawn, RGB of any size: `scale` is how strong its hints are. `digest` is that of the image's file.
    `picture` is None once the images are made."""

    picture: "Image.Image | None"
    scale: float
    digest: str


@dataclass(frozen=True, slots=True)
class UsedLora:
    """A LoRA that images are drawn with: its factors' product is added `scale` times; `digest` is that of its seal."""

    name: str
    scale: float
    digest: str


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """What images are made from, one per seed. Sizes in pixels, multiples of 16. `source` is the image that is changed, `control` one that guides. `has_host_noise`: the noise is drawn on the
    processor, whose generator gives other numbers for a seed than that of a GPU, but the same beside every device."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seeds: tuple[int, ...]
    has_host_noise: bool = False
    source: InitialImage | None = None
    loras: tuple[UsedLora, ...] = ()
    control: ControlImage | None = None

    @property
    def image_size(self) -> tuple[int, int]:
        """The width and height of the images that a client gets, pixels."""
        whole = None if self.source is None else self.source.whole
        return (self.width, self.height) if whole is None else (whole[0], whole[1])

    @property
    def first_step(self) -> int:
        """The first of the steps that is made: `strength` leaves out those before it, by diffusers' formula. With a strength of 0,
        which diffusers refuses, there is none."""
        return 0 if self.source is None else first_step(self.steps, self.source.strength)

    @property
    def steps_made(self) -> int:
        """How many steps an image takes."""
        return self.steps - self.first_step

    def without_pixels(self) -> "GenerationParameters":
        """Return the same without the pixels of other images, which take much memory."""
        source = None if self.source is None else replace(self.source, picture=None, mask=None)
        control = None if self.control is None else replace(self.control, picture=None)
        return replace(self, source=source, control=control)


def first_step(steps: int, strength: float) -> int:
    """Return the first step that is made of so many, for a strength from 0 to 1."""
    return int(max(steps - min(steps * strength, steps), 0))


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

"""Following a drawing on a replica from the controller: its steps, previews and pictures come here as they happen."""

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from zwatch.engine.parameters import Generation, GenerationParameters
from zwatch.errors import GenerationCancelled
from zwatch.fleet.cluster import Gone, Stream
from zwatch.fleet.messages import DrawEvent, Drawn, Failure, Made, Stepped
from zwatch.timeline import Phase, Phases

if TYPE_CHECKING:
    from zwatch.fleet.member import Member

STEP_SECONDS, STEP_SECONDS_ON_GPU = 600.0, 120.0
"""Without a step, after which a replica that draws hangs; as `zwatch.generation.generator` has it for a device of its own."""
_CHECK_SECONDS = 0.1


class Lost(Exception):
    """The replica that drew is lost. `is_alive`: its process may not have ended, and has to."""

    def __init__(self, text: str, *, is_alive: bool) -> None:
        super().__init__(text)
        self.is_alive = is_alive


@dataclass(frozen=True, slots=True)
class RemotePreview:
    """A preview that came from a replica: uint8 of shape (h / 8, w / 8, 3)."""

    pixels: Any

    def image(self) -> Image.Image:
        """Return the picture."""
        return Image.fromarray(self.pixels)


class Following:
    """One drawing, by one replica or by several, one after the other. `now` gets it while `on_step` is called in its thread."""

    def __init__(
        self,
        engine_id: str,
        step_seconds: float,
        parameters: GenerationParameters,
        loras: tuple[tuple[str, str], ...],
        on_step: Callable[[int], None],
        on_image: Callable[[int, Image.Image], None],
        cancelled: Callable[[], bool],
        now: threading.local,
    ) -> None:
        self.run_id = secrets.token_hex(8)
        self._engine_id, self._step_seconds, self._parameters, self._loras = engine_id, step_seconds, parameters, loras
        self._on_step, self._on_image, self._cancelled, self._now = on_step, on_image, cancelled, now
        self._images: list[Image.Image] = []
        self._pixels: Any = None
        self._member: Member | None = None
        self._has_asked = self._is_ending = False

    def renew(self) -> None:
        """Prepare to be drawn by another replica: what is made already stays."""
        self.run_id = secrets.token_hex(8)
        self._has_asked = self._is_ending = False  # the next replica has not been told that it was cancelled
        self._pixels = None

    def preview(self) -> RemotePreview | None:
        """Return the preview of the last step, if it came with one, and ask for those that follow."""
        if not self._has_asked and self._member is not None:
            self._has_asked = True
            self._member.actor.tell("preview", self.run_id)
        return None if self._pixels is None else RemotePreview(self._pixels)

    def draw(self, member: "Member", epoch: int) -> Generation:
        """Let a replica draw what is not made yet; `epoch` is that in which it was chosen.

        Raises:
            Lost: the replica is lost.
            GenerationCancelled: the request was cancelled.
            RuntimeError, MemoryError: its device failed.
        """
        self._member, begun = member, time.monotonic()
        missing = replace(self._parameters, seeds=self._parameters.seeds[len(self._images) :])
        first_image, first_step = len(self._images), len(self._images) * self._parameters.steps_made
        try:
            stream = member.actor.draw(self.run_id, self._engine_id, missing, self._loras)
            while True:
                for event in self._next(stream, member, epoch):
                    match event:
                        case Stepped():
                            self._step(first_step + event.done, event.preview)
                        case Made():
                            self._add(first_image + event.number, event)
                        case Drawn():
                            return self._generation(event, begun)
                        case Failure():
                            raise self._error(event)
        except Gone as error:
            raise Lost(f"it died or cannot be reached: {error}", is_alive=False) from None

    def _next(self, stream: Stream, member: "Member", epoch: int) -> tuple[DrawEvent, ...]:
        """Return the next events.

        Raises:
            Lost: there is none within the step's limit.
            Gone: the replica has died or cannot be reached.
        """
        end = time.monotonic() + self._step_seconds
        while (event := stream.next(_CHECK_SECONDS)) is None:
            if not self._is_ending and self._cancelled():
                self._is_ending = True
                member.actor.tell("cancel", self.run_id)
            if member.epoch != epoch:
                raise Lost(member.problem or "it was lost", is_alive=False)
            if time.monotonic() > end:
                raise Lost(f"it hangs: no step for {self._step_seconds:g} s", is_alive=True)
        # A call that fails by itself gives a failure alone.
        return (event,) if isinstance(event, Failure) else tuple(event)

    def _step(self, done: int, pixels: Any) -> None:
        self._pixels = pixels
        self._now.following = self
        try:
            self._on_step(done)
        finally:
            self._now.following = None
        if not self._is_ending and self._cancelled():
            self._is_ending = True
            assert self._member is not None
            self._member.actor.tell("cancel", self.run_id)

    def _add(self, number: int, made: Made) -> None:
        # The one copy: Pillow has four bytes for each pixel.
        image = Image.fromarray(made.pixels)
        self._images.append(image)
        if made.is_finite:
            self._on_image(number, image)

    def _generation(self, drawn: Drawn, begun: float) -> Generation:
        phases = Phases(Phase(name, begun + since, begun + until) for name, since, until in drawn.phases)
        return Generation(self._images, drawn.truncated, drawn.finite, dict(drawn.timings), phases)

    def _error(self, failure: Failure) -> Exception:
        if failure.kind in ("lost", "anew") or (failure.kind == "cancelled" and not self._is_ending):
            return Lost(failure.text or "its drawing was ended", is_alive=failure.kind == "lost")
        if failure.kind == "cancelled":
            return GenerationCancelled()
        assert self._member is not None
        return failure.at(self._member.where).error

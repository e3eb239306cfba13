"""Which versions have made a usable warm-up image on this machine, so that its next start need not make it again."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from blake3 import blake3

from zwatch import __version__
from zwatch.engine.kept_files import KeptFiles
from zwatch.engine.precision import Precision
from zwatch.engine.preview import LatentColours
from zwatch.lanes import start_thread
from zwatch.shadow.device import Device

KEPT = 16
"""Versions that are remembered."""
_DISTRUSTED = 1000
"""Versions that are distrusted, whatever is remembered of them; the oldest are forgotten first."""
MOST_WRITERS = 4
"""Threads that write or remove at a time. A disk that does not answer keeps them, and what comes then is left out."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the warm-up image of a version has shown, and how many of its golden images, the first ones, were compared and good."""

    colours: LatentColours
    golden: int


class ProvenVersions:
    """What is known of versions by digest, on this device, with these libraries. `files` is where that is kept."""

    def __init__(
        self, device: Device, files: KeptFiles, precision: Precision = Precision(), *, is_exact: bool = True  # noqa: B008 (frozen)
    ) -> None:  # fmt: skip
        """`precision` and `is_exact` are what was asked for: golden images are compared as they are drawn so."""
        self._device = device
        self._files = files
        self._distrusted: dict[str, None] = {}
        self._writers = threading.BoundedSemaphore(MOST_WRITERS)
        self._turn = threading.Lock()
        self._newest: dict[str, object] = {}
        """What was asked for last, of each file that is about to change: an older wish must not come after it."""
        self._place = json.dumps([__version__, precision.dtype, precision.quantize, is_exact, *device.identity()])

    def find(self, digest: str) -> Proof | None:
        """Return what is known of a version whose warm-up image was usable; None if that is not known."""
        data = None if digest in self._distrusted else self._files.read(self._name(digest))
        if data is None:
            return None
        try:
            found = json.loads(data)
            weights, bias = (torch.tensor(found[name], dtype=torch.float32) for name in ("weights", "bias"))
            golden = int(found["golden"])
        except (ValueError, TypeError, LookupError):
            return None
        place = self._device.torch_device
        return Proof(LatentColours(weights.to(place), bias.to(place)), golden)

    def note(self, digest: str, colours: LatentColours, golden: int = 0) -> None:
        """Remember that a version has made a usable image, what that has shown, and how many golden images were good."""
        self._distrusted.pop(digest, None)
        found = {"weights": colours.weights.tolist(), "bias": colours.bias.tolist(), "golden": golden}
        data = json.dumps(found).encode()
        self._beside(self._name(digest), lambda name: self._files.write(name, data))

    def forget(self, digest: str) -> None:
        """Forget a version: it has made a bad image since, or the process crashed while it served."""
        self._distrusted[digest] = None  # also if the file cannot be removed
        while len(self._distrusted) > _DISTRUSTED:
            del self._distrusted[next(iter(self._distrusted))]
        self._beside(self._name(digest), self._files.remove)

    def _name(self, digest: str) -> str:
        return blake3(f"{digest}\n{self._place}".encode()).hexdigest(32)

    def _beside(self, name: str, change: Callable[[str], object]) -> None:
        """Change a file in a thread: a disk that does not answer holds up neither a load nor the event loop."""
        if not self._writers.acquire(blocking=False):
            return
        wish = self._newest[name] = object()
        while len(self._newest) > _DISTRUSTED:
            del self._newest[next(iter(self._newest))]
        try:
            start_thread(
                threading.Thread(target=self._change, args=(name, change, wish), name="zwatch-proven", daemon=True)
            )
        except OSError:  # without it the next start takes longer
            self._writers.release()

    def _change(self, name: str, change: Callable[[str], object], wish: object) -> None:
        try:
            with self._turn:
                if self._newest.get(name) is wish:
                    change(name)
        finally:
            self._writers.release()

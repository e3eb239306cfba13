"""A light engine: it verifies a version's files as the genuine one does, and draws one colour that depends on their bytes.

It needs no torch, so a service with it starts in a tenth of a second. `Faults` are what tests make its loads do.
"""

import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

from blake3 import blake3
from PIL import Image

from zwatch.deploy import header, seal
from zwatch.engine.parameters import Generation
from zwatch.errors import Abandoned, GenerationCancelled, Rejection
from zwatch.rollout.lifecycle import VersionKey

BAD = b"no image"
"""A version whose weights begin so makes no usable image."""
SIDE = 16


def colour_of(weights: bytes) -> tuple[int, int, int]:
    """Return what a version with these weights draws."""
    return tuple(blake3(weights).digest()[:3])


def content_of(weights: bytes) -> bytes:
    """Return what the weights hold behind their header."""
    return weights[8 + int.from_bytes(weights[:8], "little") :]


@dataclass
class Faults:
    """What the next load does: `hang` in a stage without a look at whether it is still wanted, be `slow` there, or `fail`
    with a code. `held` stops all images until it is released."""

    hang: str | None = None
    slow: str | None = None
    fail: str | None = None
    stopped_in: str | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    held: threading.Event = field(default_factory=threading.Event)
    drawing: int = 0

    def __post_init__(self):
        self.held.set()

    def at(self, stage, control):
        """Do what the tests want of this stage."""
        if self.fail is not None and stage == "build":
            code, self.fail = self.fail, None
            raise Rejection(code, "the test asked for it")
        if self.hang == stage:
            self.hang, self.stopped_in = None, stage
            try:
                while not control.is_left:
                    time.sleep(0.002)
            finally:  # it may be interrupted
                self.stopped_in = None
        elif self.slow == stage:
            self.slow, self.stopped_in = None, stage
            self.go_on.clear()
            try:
                while not self.go_on.wait(0.002):
                    control.check()
            finally:
                self.stopped_in = None


class LightDevice:
    """A device without memory of its own."""

    name, torch_device = "light", SimpleNamespace(type="cpu")
    is_preparing = False

    def __init__(self):
        self.reader = SimpleNamespace(renew=lambda: None)

    def memory(self):
        return 2**30, 2**30

    def lost(self):
        return None

    def reserve(self, sizes):
        return True

    def has_room(self, sizes):
        return True

    def give_room(self):
        return False


class LightEngine:
    """One version in memory."""

    is_unjudged, colours, components, device_buffers, sizes = False, None, (), (), []
    nbytes, host_nbytes, precision = 0, 0, "bf16"
    default_size, max_side, has_control = SIDE, 64, False
    golden = SimpleNamespace(pictures=(), checked=0, missed=0, next=None)
    open = 0
    """How many engines are not closed, over all versions."""

    def __init__(self, plan, weights, faults):
        self.plan, self.version, self.digest = plan, plan.version, plan.seal.digest
        self.is_complete = True
        self._weights, self._faults = weights, faults
        LightEngine.open += 1

    def serve(self, parameters, *, on_step, on_image, cancelled, adapted=None):
        self._faults.drawing += 1
        while not self._faults.held.wait(0.002):
            if cancelled():
                raise GenerationCancelled
        images = []
        for number, _ in enumerate(parameters.seeds):
            assert self.is_complete, "the engine was closed while a request used it"
            on_step((number + 1) * parameters.steps)
            images.append(Image.new("RGB", (parameters.width, parameters.height), colour_of(self._weights)))
            images[-1].paste("white", (0, SIDE // 2, SIDE, SIDE))
            on_image(number, images[-1])
        return Generation(images, False, True, {"encode": 0.0, "denoise": 0.0, "decode": 0.0})

    def preview(self):
        return None

    def verify_resident(self):
        return len(self._weights), []

    def close(self):
        if self.is_complete:
            self.is_complete = False
            LightEngine.open -= 1


class LightLoras:
    """No LoRA is resident: these engines have no layers that one could change."""

    residents, nbytes = {}, 0

    def prepare(self):
        pass

    def give_room(self):
        return False


class LightFactory:
    """Makes light engines with the real seals, headers and hashes."""

    def __init__(self, faults):
        self.device, self.loras, self._faults = LightDevice(), LightLoras(), faults

    def plan(self, directory, digest, control):
        self._faults.at("plan", control)
        sealed = seal.read_seal(directory.fd)
        if sealed.digest != digest:
            raise Rejection("seal_changed", f"its digest is {sealed.digest}, expected {digest or 'no seal'}")
        stamps = directory.file_stamps(list(sealed.files), control.check)
        for path, stamp in stamps.items():
            if stamp is None:
                raise Rejection("file_missing", f"{path}: the seal names it, it is not there")
        for path in sealed.files:
            if header.carries_version(path):
                with seal.opened_sealed(directory.fd, sealed, path) as fd:
                    header.check_version(header.read_header(fd, path), directory.version, path)
        return SimpleNamespace(version=directory.version, seal=sealed, stamps=stamps)

    def lacks(self, planned):
        return False

    def build(self, directory, planned, control):
        self._faults.at("build", control)
        weights = b""
        for path, expected in planned.seal.files.items():
            control.check()
            with seal.opened_sealed(directory.fd, planned.seal, path) as fd, open(fd, "rb", closefd=False) as file:
                data = file.read()
            seal.check_hash(path, blake3(data).hexdigest(), expected)
            weights += data if header.carries_version(path) else b""
        return LightEngine(planned, weights, self._faults)

    def is_proven(self, engine):
        return False

    def warm(self, engine, control):
        self._faults.at("warm", control)
        control.check()
        if content_of(engine._weights).startswith(BAD):
            raise Rejection("bad_image", "the warm-up image is one colour")

    def distrust(self, digest):
        pass


def key_of(resident) -> tuple[str, str | None]:
    """Return (version, digest)."""
    key: VersionKey = resident.key
    return key.version, key.digest


__all__ = ["BAD", "SIDE", "Abandoned", "Faults", "LightEngine", "LightFactory", "colour_of", "content_of", "key_of"]

"""Versions on disk that are changed, and what the code of a deploy makes of them, without a service."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zwatch.deploy.look import Looker
from zwatch.deploy.resolving import Target
from zwatch.deploy.seal import SEAL_NAME, parse_seal
from zwatch.engine.factory import EngineFactory
from zwatch.engine.pipeline import Engine, GenerationParameters
from zwatch.errors import Rejection
from zwatch.shadow.control import LoadControl
from zwatch.shadow.device import Device

VERIFYING = {
    "seal_missing", "seal_invalid", "seal_changed", "file_missing", "file_not_regular", "size_mismatch", "hash_mismatch",
    "header_invalid", "version_mismatch",
}  # fmt: skip
"""The codes that say that the bytes of a version are wrong: neither an error of the system nor of a library."""
WANTED = GenerationParameters("a cat", "", 64, 64, 1, 0.0, (1,))


class Loads:
    """Loads what a models root's `current` points to, as the service does: it looks, plans, reads, verifies, builds."""

    def __init__(self, models: Path, budget: int = 2**26) -> None:
        self.models = models
        self.looker = Looker(models, ["current"], strict_links=True)
        self.factory = EngineFactory(Device("cpu", budget=budget))

    def load(self) -> Engine:
        """Return an engine.

        Raises:
            Rejection: as the service would say it.
        """
        target = self.looker.look().targets["current"]
        assert isinstance(target, Target)
        control = LoadControl()
        planned = self.factory.plan(target.directory, target.digest, control)
        return self.factory.build(target.directory, planned, control)

    def rejection(self) -> Rejection | None:
        """Return why it was rejected, None if it was not; nothing of it stays in memory."""
        try:
            self.load().close()
        except Rejection as rejection:
            return Rejection(rejection.code, rejection.reason)
        return None


def picture(engine: Engine) -> bytes:
    """Return the RGB bytes of one image."""
    return engine.generate(WANTED).images[0].tobytes()


def files(version: Path) -> list[str]:
    """Return the relative paths of all files of a version, its seal among them."""
    return [SEAL_NAME, *parse_seal((version / SEAL_NAME).read_bytes()).files]


@contextmanager
def changed_byte(path: Path, position: int, mask: int) -> Iterator[None]:
    """Change one byte of a file in place, and change it back."""
    fd = os.open(path, os.O_RDWR)
    try:
        (before,) = os.pread(fd, 1, position)
        os.pwrite(fd, bytes([before ^ mask]), position)
        yield
        os.pwrite(fd, bytes([before]), position)
    finally:
        os.close(fd)


@contextmanager
def other_length(path: Path, length: int) -> Iterator[None]:
    """Cut a file off, or append zeros to it, in place; afterwards it is as before."""
    before = path.read_bytes()
    os.truncate(path, length)
    yield
    path.write_bytes(before)

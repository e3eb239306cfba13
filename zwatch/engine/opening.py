"""Opening the device: torch is imported here first, and what cannot be repeated in this process is told from what heals.

A failed import leaves half-imported modules behind, so that a second one fails with another, misleading error. CUDA remembers
most errors of its first initialisation. Such a process has to end; another one can try again.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.errors import FatalError, Rejection

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory

_LIBRARIES = ("numpy", "PIL.Image", "safetensors", "torch", "tokenizers", "jinja2")
"""What is needed sooner or later, imported one by one so that the first failure has the right name."""
_AT_FIRST_USE = ("_strptime", "encodings.utf_16_be", "encodings.utf_16_le")
"""What Python itself would import at a request: by then there may be no file descriptor for it."""

_CONFIGURATION = (
    "driver on your system is too old",
    "driver version is insufficient",
    "no nvidia driver",
    "no cuda gpus are available",
    "no cuda-capable device",
    "not compiled with cuda",
    "without cuda support",
    "requires cuda support",
    "invalid device ordinal",
    "no kernel image is available",
    "unsupported display driver",
    "forward compatibility was attempted",
)
"""Parts of messages about a device that this machine does not have, or that this torch cannot use."""
_PASSING = ("out of memory", "busy or unavailable")
"""Parts of messages of CUDA about what other programs hold."""


def open_factory(device: str, *, budget: int | None = None, cache: Path | None = None) -> "EngineFactory":
    """Import all libraries and open a device; return its engine factory, which keeps what it prepares in `cache`. It blocks.

    Raises:
        FatalError: a library cannot be imported, or the device cannot be opened by this process.
        Rejection: `out_of_memory` or `device_error`, other programs hold the device; it can be tried again.
    """
    for library in (*_LIBRARIES, *_AT_FIRST_USE, "zwatch.engine.factory"):
        import_library(library)
    from PIL import Image

    Image.init()  # its file formats, for the same reason
    from zwatch.engine.factory import EngineFactory
    from zwatch.shadow.device import Device

    try:
        _check_present(device)
        return EngineFactory(Device(device, budget=budget, cache=cache), cache)
    except FatalError:
        raise
    except Exception as error:
        raise judged(device, error) from error


def import_library(name: str) -> None:
    """Import a module.

    Raises:
        FatalError: it cannot be imported, whatever the reason.
    """
    try:
        importlib.import_module(name)
    except Exception as error:
        raise FatalError(
            f"{name} cannot be imported: {type(error).__name__}: {_first_line(error)}; the log has the traceback. If the "
            "installation is incomplete, install zwatch again"
        ) from error


def judged(device: str, error: Exception) -> FatalError | Rejection:
    """Return what an error at the opening of a device means."""
    text = _first_line(error)
    found = str(error).lower()
    if isinstance(error, MemoryError) or _PASSING[0] in found:
        return Rejection("out_of_memory", f"--device {device}: memory ran out when it was opened: {text}")
    if any(part in found for part in _PASSING):
        return Rejection("device_error", f"--device {device}: {text}")
    if any(part in found for part in _CONFIGURATION):
        return absent(device, text)
    return FatalError(f"--device {device} cannot be opened by this process: {type(error).__name__}: {text}")


def absent(device: str, why: str) -> FatalError:
    """Return the error of a device that this machine does not have, or that this torch cannot use."""
    return FatalError(f"--device {device}: {why.rstrip('.')}; give another --device (or ZWATCH_DEVICE)", status=2)


def _check_present(device: str) -> None:
    """Check what torch knows without opening the device.

    Raises:
        FatalError: there is no such device.
    """
    import torch

    kind, _, index = device.partition(":")
    if kind != "cuda":
        return
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        raise absent(device, f"torch {torch.__version__} is built without CUDA")
    number = torch.cuda.device_count()
    if number == 0:
        try:
            torch.cuda.init()  # to find out why
        except Exception as error:
            raise judged(device, error) from error
        raise absent(device, "there is no CUDA device")
    if index and int(index) >= number:
        there = "only cuda:0" if number == 1 else f"cuda:0 to cuda:{number - 1}"
        raise absent(device, f"this machine has {there}")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]

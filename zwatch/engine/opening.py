"""Opening the device: torch is imported here first, and what cannot be repeated in this process is told from what heals.

A failed import leaves half-imported modules behind, so that a second one fails with another, misleading error. CUDA remembers
most errors of its first initialisation. Such a process has to end; another one can try again.
"""

import ctypes
import importlib
import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.errors import FatalError, Rejection
from zwatch.shadow.control import LoadControl
from zwatch.shadow.cuda_context import EarlyContext
from zwatch.shadow.faults import first_line, is_memory_short, named
from zwatch.shadow.read_sizes import pinned_bytes

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.kernels import Kernels
    from zwatch.engine.tokenizer_maker import TokenizerMaker
    from zwatch.shadow.device import Device

_SHARED_LIBRARIES = ("libtorch_global_deps.so", "libc10.so", "libtorch_cpu.so", "libtorch_cuda.so")
"""Most of what `import torch` loads, in the order of their dependencies."""
_LIBRARIES = ("numpy", "torch", "safetensors", "zwatch.shadow.device")
"""What a device needs, imported one by one so that the first failure has the right name."""
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


def open_factory(
    device: str, *, budget: int | None = None, cache: Path | None = None, control: LoadControl | None = None,
    exact: bool | None = None, dtype: str = "auto", quantize: str | None = None,
    text_encoder: str = "auto",
) -> "EngineFactory":  # fmt: skip
    """Import all libraries and open a device; return its engine factory, which keeps what it prepares in `cache` and draws
    `exact` as `zwatch.engine.acceleration` has it, in the precision that `zwatch.engine.precision` makes of `dtype` and `quantize`, with the `text_encoder` where
    `zwatch.engine.placement` has it. It blocks. `control` is told what is done: the phases `import`, and `device` for what is left of its opening then.

    Raises:
        FatalError: a library cannot be imported, or the device cannot be opened by this process.
        Rejection: `out_of_memory` or `device_error`, other programs hold the device; it can be tried again.
    """
    control = control or LoadControl()
    with control.phase("import"):
        control.begin("importing libraries", is_slow=True)
        early = EarlyContext(device if _shared_library("libtorch_cuda.so") else "cpu", pinned_bytes())
        tokenizers = _tokenizer_maker(cache)
        _import_torch()
        opener = ThreadPoolExecutor(1, thread_name_prefix="zwatch-open")
        opening = opener.submit(_opened, device, budget, cache, early, exact)
        opener.shutdown(wait=False)
        for library in ("PIL.Image", "tokenizers", "jinja2", *_AT_FIRST_USE, "zwatch.engine.factory"):
            import_library(library)
        from PIL import Image

        Image.init()  # its file formats, for the same reason
        from zwatch.engine.factory import EngineFactory
        from zwatch.engine.precision import Precision
    with control.phase("device"):
        control.begin("opening the device", is_slow=True)
        opened, kernels = opening.result()
        precision = Precision(dtype, quantize)
        return EngineFactory(
            opened, cache, tokenizers, exact=exact, precision=precision, text_encoder=text_encoder, kernels=kernels
        )


def _tokenizer_maker(cache: Path | None) -> "TokenizerMaker":
    """Return what makes tokenizers, so early because its process needs longer than all that follows here.

    Raises:
        FatalError: a library cannot be imported.
    """
    import_library("blake3")
    from zwatch.engine.tokenizer_maker import TokenizerMaker

    made = TokenizerMaker(cache)
    made.prepare()
    return made


def _opened(
    device: str, budget: int | None, cache: Path | None, early: EarlyContext, exact: bool | None
) -> "tuple[Device, Kernels | None]":  # fmt: skip
    """Open a device, and let it load its kernels. Return it with those of the fast way, if pictures are to be drawn so.

    Raises:
        FatalError, Rejection: as `open_factory`.
    """
    from zwatch.engine import rehearsal
    from zwatch.engine.kernels import Kernels
    from zwatch.shadow.device import Device

    try:
        _check_present(device)
        opened = Device(device, budget=budget, cache=cache, early=early)
        is_fast = opened.torch_device.type == "cuda" and not exact
        kernels = Kernels(opened, cache) if is_fast else None
        rehearsal.begin(opened, kernels)
        return opened, kernels
    except FatalError:
        raise
    except Exception as error:
        raise judged(device, error) from error


def _import_torch() -> None:
    """Import torch and what else a device needs.

    Raises:
        FatalError: a library cannot be imported.
    """
    _load_shared_libraries()
    for library in _LIBRARIES:
        import_library(library)


def _load_shared_libraries() -> None:
    """Load torch's shared libraries, if they are where its packages have them. An import, and `ctypes.CDLL`, would hold the
    interpreter lock meanwhile: for up to half a second the event loop would answer nobody. So would any other import of a shared
    library: it waits for these, and holds the lock."""
    dlopen = getattr(ctypes.CDLL(None), "dlopen", None)
    if dlopen is None:
        return
    dlopen.argtypes, dlopen.restype = [ctypes.c_char_p, ctypes.c_int], ctypes.c_void_p
    for name in _SHARED_LIBRARIES:
        if (path := _shared_library(name)) is not None:
            # What fails here fails again at the import, which says why.
            dlopen(bytes(path), os.RTLD_NOW | (os.RTLD_GLOBAL if "global" in name else os.RTLD_LOCAL))


def _shared_library(name: str) -> Path | None:
    """Return the path of one of torch's shared libraries, if this torch has it."""
    found = importlib.util.find_spec("torch")
    path = None if found is None or found.origin is None else Path(found.origin).parent / "lib" / name
    return path if path is not None and path.exists() else None


def import_library(name: str) -> None:
    """Import a module.

    Raises:
        FatalError: it cannot be imported, whatever the reason.
    """
    try:
        importlib.import_module(name)
    except Exception as error:
        raise FatalError(
            f"{name} cannot be imported: {named(error)}; the log has the traceback. If the "
            "installation is incomplete, install zwatch again"
        ) from error


def judged(device: str, error: Exception) -> FatalError | Rejection:
    """Return what an error at the opening of a device means."""
    text = first_line(error)
    found = str(error).lower()
    if is_memory_short(error) or _PASSING[0] in found:
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

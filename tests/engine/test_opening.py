"""What an error at the opening of the device means: what heals is tried again, everything else ends the process."""

import pytest
import torch

from zwatch.engine.opening import import_library, judged, open_factory
from zwatch.errors import FatalError, Rejection

HEALS, ANOTHER_PROCESS, CONFIGURATION = "heals", 1, 2


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."), HEALS),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"), HEALS),
        (MemoryError(), HEALS),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), HEALS),
        (AssertionError("Torch not compiled with CUDA enabled"), CONFIGURATION),
        (RuntimeError("PyTorch was compiled without CUDA support"), CONFIGURATION),
        (
            RuntimeError("Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU"),
            CONFIGURATION,
        ),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), CONFIGURATION),
        (RuntimeError("CUDA error: CUDA driver version is insufficient for CUDA runtime version"), CONFIGURATION),
        (RuntimeError("No CUDA GPUs are available"), CONFIGURATION),
        (RuntimeError("CUDA error: invalid device ordinal"), CONFIGURATION),
        (RuntimeError("CUDA error: no kernel image is available for execution on the device"), CONFIGURATION),
        (RuntimeError("CUDA unknown error - this may be due to an incorrectly set up environment"), ANOTHER_PROCESS),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), ANOTHER_PROCESS),
        (RuntimeError("CUDA error: initialization error"), ANOTHER_PROCESS),
        (OSError(24, "Too many open files"), ANOTHER_PROCESS),
        (ImportError("libcuda.so.1: cannot open shared object file"), ANOTHER_PROCESS),
    ],
)
def test_what_an_error_at_the_opening_means(error, meaning):
    found = judged("cuda", error)
    assert str(found).startswith("--device cuda")
    assert "\n" not in str(found)
    if meaning == HEALS:
        assert isinstance(found, Rejection)
    else:
        assert isinstance(found, FatalError)
        assert (found.status, found.is_crash) == (meaning, False)


@pytest.mark.parametrize("device", ["cuda:99", "cuda:999"])
def test_a_device_that_is_not_there_is_a_wrong_configuration(device):
    with pytest.raises(FatalError, match=f"--device {device}: .*; give another --device") as caught:
        open_factory(device)
    assert caught.value.status == 2


def test_a_library_that_fails_in_any_way_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_library.py").write_text("raise SyntaxError('half a file\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(FatalError, match="broken_library cannot be imported: SyntaxError: half a file; ") as caught:
        import_library("broken_library")
    assert caught.value.status == 1


def test_the_cpu_is_opened():
    assert open_factory("cpu").device.name == "CPU"

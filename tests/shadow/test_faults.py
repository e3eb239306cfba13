"""What the errors of torch and CUDA mean, in the words in which they come."""

import pytest
import torch

from zwatch.shadow.faults import is_memory_short, may_be_the_device

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
    ),
    RuntimeError("Triton Error [CUDA]: out of memory"),
    MemoryError(),
]
STICKY = [
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: device-side assert triggered",
    "CUDA error: unspecified launch failure",
    "CUDA error: misaligned address",
    "CUDA error: the launch timed out and was terminated",
    "CUDA error: hardware stack error",
    "CUDA error: an illegal instruction was encountered",
    "CUDA error: invalid program counter",
    "CUDA error: uncorrectable ECC error encountered",
    "CUDA error: uncorrectable NVLink error detected during the execution",
    "CUDA error: GPU is lost",
    "CUDA error: unknown error",
    "CUDA driver error: an illegal memory access was encountered",
]
FOLLOWING = [
    RuntimeError(
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx( handle, opa, opb, m, n, k, ...)`"
    ),
    RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_MAPPING_ERROR"),
    RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
    RuntimeError("NCCL error in: ProcessGroupNCCL.cpp, unhandled cuda error"),
    torch.AcceleratorError("the accelerator failed"),
]


def test_memory_that_is_short_is_known_by_every_library_and_leaves_the_device_whole():
    assert [error for error in SHORT if not is_memory_short(error) or may_be_the_device(error)] == []


@pytest.mark.parametrize("kind", [RuntimeError, torch.AcceleratorError])
def test_an_error_that_poisons_the_context_is_no_lack_of_memory_and_may_be_the_device(kind):
    assert [text for text in STICKY if is_memory_short(kind(text)) or not may_be_the_device(kind(text))] == []


def test_errors_of_libraries_that_follow_one_are_known():
    assert [error for error in FOLLOWING if is_memory_short(error) or not may_be_the_device(error)] == []


def test_it_is_known_behind_the_error_that_it_was_translated_into():
    translated = ValueError("the picture could not be made")
    translated.__cause__ = torch.AcceleratorError(STICKY[0])
    assert may_be_the_device(translated)


@pytest.mark.parametrize(
    "error", [None, OSError(5, "cuda"), ValueError("a side of 17"), RuntimeError("shape [1, 2] is invalid")]
)
def test_other_errors_are_not_the_device_s(error):
    assert not may_be_the_device(error)

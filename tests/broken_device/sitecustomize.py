"""For a service whose PYTHONPATH has this directory: some prompts make the device hang or lose it.

`hang` never comes back, `loop` is a loop of Python code that never ends, `lose` makes every further call of the device fail, and
`fail` fails alone.
On a GPU a kernel does it; on a CPU, which cannot be lost, a call of C that does not return and an error with CUDA's own words.
"""

import ctypes
import importlib.abc
import importlib.machinery
import sys
import time

LOST = "CUDA error: device-side assert triggered"
ADVICE = "For debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
"""What torch adds in further lines."""
_lost = []


def _hang(device):
    import torch

    if device.type == "cuda":
        torch.cuda._sleep(2**62)
        torch.cuda.current_stream().synchronize()
    ctypes.CDLL(None).pause()


def _loop(device):
    while True:
        time.sleep(0.01)


def _lose(device):
    import torch

    if device.type == "cuda":
        torch.zeros(1, device=device)[torch.tensor([5], device=device)].item()
    _lost.append(LOST)
    raise torch.AcceleratorError(f"{LOST}\n{ADVICE}")


def _fail(device):
    raise RuntimeError("the model failed")


_PROMPTS = {"hang": _hang, "loop": _loop, "lose": _lose, "fail": _fail}


def _break_pipeline(module):
    encode = module.Pipeline.encode

    def broken(self, prompt, device):
        _PROMPTS.get(prompt, lambda device: None)(device)
        return encode(self, prompt, device)

    module.Pipeline.encode = broken


def _break_device(module):
    lost = module.Device.lost
    module.Device.lost = lambda self: _lost[0] if _lost else lost(self)


_CHANGES = {"zwatch.engine.sampling": _break_pipeline, "zwatch.shadow.device": _break_device}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name not in _CHANGES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        execute, change = spec.loader.exec_module, _CHANGES[name]

        def exec_module(module):
            execute(module)
            change(module)

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, _Finder())

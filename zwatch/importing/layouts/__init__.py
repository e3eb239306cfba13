"""Layouts of files of weights: a pure translation of their tensors, by names and shapes, into diffusers' components.

Nothing here reads a file, apart from `gguf`, and torch is imported by computations only.
"""

from zwatch.importing.layouts.lora import merge
from zwatch.importing.layouts.lora_alone import alone
from zwatch.importing.layouts.recognition import recognise

__all__ = ["alone", "merge", "recognise"]

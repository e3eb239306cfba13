"""What an import is asked for, and what it will do, as data."""

from dataclasses import dataclass, field
from pathlib import Path

from zwatch.deploy import provenance
from zwatch.deploy.provenance import Provenance
from zwatch.importing.pieces import Output
from zwatch.importing.reading import SourceFile


@dataclass(frozen=True, slots=True)
class Ancestors:
    """What is known of the versions that a new one is made from: the source, if it has a `zwatch.json`, and the base, if anything
    comes from it; `transformer` is the one of the two that gives the transformer."""

    source: Provenance = field(default_factory=Provenance)
    base: Provenance = field(default_factory=Provenance)
    base_name: str = ""
    transformer: Provenance = field(default_factory=Provenance)

    @property
    def default_size(self) -> int | None:
        """The default size, pixels: the source's, or else the base's."""
        return self.source.default_size if self.source.default_size is not None else self.base.default_size


@dataclass(frozen=True, slots=True)
class Wish:
    """What the command line asks for: the name, the dtype that fp32 becomes (None: it stays), if it says that
    the source is a LoRA, how strong that is, and the LoRAs that are merged beside, with their scales."""

    name: str
    dtype: str | None
    lora_scale: float | None = None
    loras: tuple[tuple[Path, float], ...] = ()


@dataclass(slots=True)
class Plan:
    """What is to be done. `outputs` are written, `shared` come from the base by path, `texts` are made here; `small` and
    `shapes` are what the fit is judged by; `loras` are merged in this order, with these scales; `notes` are for the terminal, `remarks` for the provenance too."""

    outputs: list[Output] = field(default_factory=list)
    shared: dict[str, SourceFile] = field(default_factory=dict)
    texts: dict[str, bytes] = field(default_factory=dict)
    small: dict[str, bytes] = field(default_factory=dict)
    shapes: dict[str, dict[str, tuple[int, ...]]] = field(default_factory=dict)
    conversions: list[provenance.Conversion] = field(default_factory=list)
    loras: list[tuple[SourceFile, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    ancestors: Ancestors = field(default_factory=Ancestors)
    quantization: str | None = None
    is_lora: bool = False
    """Whether it makes a LoRA for the LoRA root, not a version."""

    @property
    def needs_torch(self) -> bool:
        """Whether anything is converted or computed."""
        return any(output.needs_torch for output in self.outputs)

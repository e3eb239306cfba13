"""Provenance as JSON: the content of a version's `zwatch.json`. A key that the file leaves out is left out here."""

from typing import Annotated, Any, cast

from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.schema import Digest, Number, Time, VersionName, choice
from zwatch.deploy.provenance import KINDS, QUANTIZATIONS, Provenance, as_json

_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="blake3 of a file.")]


class _NamedSource(TypedDict):
    kind: Annotated[str, choice(*KINDS)]
    name: Annotated[str, Field(description="The file's or directory's own name.")]


class SourceView(_NamedSource, total=False):
    """What a version was imported from."""

    repository: str
    revision: str
    files: Annotated[dict[str, _Hash], Field(description="By their paths below the source.")]


class BaseView(TypedDict):
    """The version that gave what the source lacks."""

    version: VersionName
    digest: Digest


class LoraView(TypedDict):
    """A LoRA that was merged into the transformer."""

    name: str
    blake3: _Hash
    scale: float


ConversionView = TypedDict("ConversionView", {"component": str, "from": str, "to": str})
ConversionView.__doc__ = "What was changed of a component."


class ProvenanceView(TypedDict, total=False):
    """What a version was made from, as its `zwatch.json` says."""

    default_size: Number
    source: SourceView
    base: BaseView
    loras: list[LoraView]
    conversions: list[ConversionView]
    quantization: Annotated[str, choice(*QUANTIZATIONS)]
    tools: Annotated[dict[str, str], Field(description="Versions by program.")]
    created: Time
    licence: str
    note: str


def provenance_view(provenance: Provenance | None) -> ProvenanceView | None:
    """Return a version's provenance; null if it has no `zwatch.json`."""
    return None if provenance is None else cast("ProvenanceView", cast("Any", as_json(provenance)))

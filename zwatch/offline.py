"""`zwatch list --models DIR`: the versions in a directory, or the LoRAs beside it, without a service."""

from pathlib import Path
from typing import Any

from zwatch.deploy.loras import LoraRoot
from zwatch.deploy.pointers import find_pointers
from zwatch.deploy.provenance import as_json
from zwatch.deploy.summaries import Summaries


def versions(models: Path) -> dict[str, Any]:
    """Return what `GET /versions` answers, as far as the directory tells it: `aliases` are all links that lead to a version, and
    what only a service knows is null.

    Raises:
        OSError: the models root cannot be read.
    """
    found, pointers = Summaries(models).read(), find_pointers(models).by_version
    return {
        "versions": [
            {
                "name": one.name,
                "sealed": one.sealed,
                "digest": one.digest,
                "header_version": one.header_version,
                "bytes": one.bytes,
                "files": one.files,
                "resident": None,
                "serving": None,
                "aliases": [_shown(link.partition(" -> ")[0]) for link in pointers.get(one.name, ())],
                "sealed_at": None if one.sealed_at is None else f"{one.sealed_at:%Y-%m-%dT%H:%M:%SZ}",
                "seal_changed_ns": None if one.seal_changed_ns is None else str(one.seal_changed_ns),
                "problem": one.problem,
                "rejected": None,
                "uses": None,
                "provenance": None if one.provenance is None else as_json(one.provenance),
            }
            for one in found.versions
        ],
        "unusable": [{"name": name, "reason": reason} for name, reason in found.unusable],
        "problem": None,
    }


def loras(root: Path) -> dict[str, Any]:
    """Return what `GET /loras` answers, as far as the directory tells it; what only a service knows is null."""
    lora_root = LoraRoot(root)
    found = [
        {
            "name": one.name,
            "digest": one.digest,
            "resident": None,
            "bytes": one.bytes,
            "rank": one.rank,
            "modules": one.modules,
            "sealed_at": None if one.sealed_at is None else f"{one.sealed_at:%Y-%m-%dT%H:%M:%SZ}",
            "signer": None,
            "code": one.code,
            "problem": one.problem,
        }
        for one in lora_root.look()
    ]
    return {"loras": found, "problem": lora_root.fault}


def _shown(name: str) -> str:
    """Return a link's path with the bytes escaped that are not UTF-8."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")

"""LoRAs as JSON."""

from typing import Annotated

from typing_extensions import TypedDict

from zwatch.api.schema import choice
from zwatch.deploy.loras import FoundLora
from zwatch.errors import REJECTION_CODES
from zwatch.rollout.loras import LoraFollower


class LoraView(TypedDict):
    """A LoRA. `bytes` are those of its factors, `rank` is the greatest, `modules` says how many matrices it changes; `resident`
    says whether it is on the device. `problem` and `code` say why requests cannot use it; both are null if they can. `signer` is
    who signed it, where signatures are required."""

    name: str
    digest: str | None
    resident: bool
    bytes: int
    rank: int
    modules: int
    sealed_at: str | None
    signer: str | None
    code: Annotated[str, choice(*REJECTION_CODES)] | None
    problem: str | None


class LorasView(TypedDict):
    """All LoRAs, sorted by name; `problem` says why the LoRA root cannot be read, null if it can or is not there."""

    loras: list[LoraView]
    problem: str | None


def lora_views(follower: LoraFollower) -> list[LoraView]:
    """Return what is known of each LoRA."""
    residents = frozenset(follower.residents())
    return [_view(one, residents) for one in follower.seen]


def loras_view(follower: LoraFollower) -> LorasView:
    """Return what is known of the LoRA root."""
    return {"loras": lora_views(follower), "problem": follower.fault}


def _view(lora: FoundLora, residents: frozenset[str]) -> LoraView:
    return {
        "name": lora.name,
        "digest": lora.digest,
        "resident": lora.problem is None and lora.digest in residents,
        "bytes": lora.bytes,
        "rank": lora.rank,
        "modules": lora.modules,
        "sealed_at": None if lora.sealed_at is None else lora.sealed_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "signer": lora.signer,
        "code": lora.code,
        "problem": lora.problem,
    }

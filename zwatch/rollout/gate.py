"""Which versions may be loaded and promoted: where signatures are required, those that the policy allows."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zwatch.bridge import Bridge
from zwatch.deploy.look import Awaited, await_files
from zwatch.deploy.lora_files import PREFIX
from zwatch.deploy.loras import FoundLora, SignerOf
from zwatch.deploy.resolving import Directory
from zwatch.deploy.seal import SIGNATURE_NAME
from zwatch.deploy.versions import VersionSummary
from zwatch.errors import Rejection
from zwatch.rollout.alias import Alias
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, VersionKey
from zwatch.rollout.load_thread import LoadThread, rejection_of
from zwatch.signing.check import Signatures
from zwatch.signing.judged import Judgements

if TYPE_CHECKING:
    from zwatch.shadow.control import LoadControl

_log = logging.getLogger(__name__)


def _with_judgement(lora: FoundLora, judgement: str | Rejection | None) -> FoundLora:
    if isinstance(judgement, Rejection):
        return replace(lora, code=judgement.code, problem=judgement.reason)
    return replace(lora, signer=judgement)


class Load(Protocol):
    """What it has to know of a load."""

    attempt: Attempt
    directory: Directory | None
    awaited: Awaited | None


class Gate:
    """Asks for the signature of each version before anything but its seal is read. `policy_file` is that of `--require-signature`;
    None lets every version pass."""

    def __init__(self, policy_file: Path | None) -> None:
        self._signatures = None if policy_file is None else Signatures(policy_file)
        self._looking: asyncio.Task[None] | None = None
        self.fault: str | None = None
        """Why the policy cannot be used, as it was looked at last; None if it can, or there is none."""
        self._judgements = None if policy_file is None else Judgements(policy_file)
        self._lora_judgements = None if policy_file is None else Judgements(policy_file)

    @property
    def needs_signature(self) -> bool:
        """Whether a version must be signed."""
        return self._signatures is not None

    # --- in a thread

    def signer(self, directory: Directory, key: VersionKey, control: "LoadControl | None" = None) -> str | None:
        """Return who signed an opened version; None where no signature is required.

        Raises:
            Rejection: the policy does not allow it.
            OSError: the seal or the signature could not be read.
        """
        if self._signatures is None:
            return None
        if control is not None:
            control.begin(f"verifying {SIGNATURE_NAME}")
        return self._signatures.check(directory.fd, key.version, key.digest)

    def judge(self, root: Path, versions: Iterable[VersionSummary]) -> dict[str, str | Rejection]:
        """Return of each version, by name, who signed it, or why the policy does not allow it. Nothing of one that cannot be read,
        and where no signature is required."""
        return {} if self._judgements is None else self._judgements.judge(root, versions)

    def judge_loras(self, root: Path, found: Sequence[FoundLora]) -> list[FoundLora]:
        """Return LoRAs with their signers, and those that the policy does not allow with that problem."""
        if self._lora_judgements is None:
            return [*found]
        judged = self._lora_judgements.judge(root, [one for one in found if one.digest is not None], PREFIX)
        return [_with_judgement(one, judged.get(one.name)) for one in found]

    @property
    def signer_of_lora(self) -> SignerOf | None:
        """What is asked for the signature of a LoRA that is opened; None where no signature is required."""
        return None if self._signatures is None else self._signatures.check

    def await_files(self, directory: Directory, *, also_seal: bool = False) -> Awaited:
        """Note the present state of all files on which it depends whether a version is rejected.

        Raises:
            OSError: one could not be looked at.
        """
        also = [] if self._signatures is None else [SIGNATURE_NAME, *self._signatures.files()]
        return await_files(directory, also_seal=also_seal, also=also)

    # --- on the event loop

    def watch(self, bridge: Bridge, changed: Callable[[], None]) -> None:
        """Look at the policy, unless a look at it has not come back; `changed` is called when `fault` is another one."""
        if self._judgements is not None and (self._looking is None or self._looking.done()):
            self._looking = asyncio.create_task(self._look(self._judgements, bridge, changed))

    async def _look(self, judgements: Judgements, bridge: Bridge, changed: Callable[[], None]) -> None:
        try:
            fault = await bridge.run("inspect", judgements.look)
        except OSError as error:  # also NoAnswer
            fault = f"the policy of signatures cannot be read: {error.strerror}"
        if fault != self.fault:
            self.fault = fault
            if fault is None:
                _log.info("the policy of signatures can be used again")
            else:
                _log.error("%s", fault)
            changed()

    async def examine(self, load: Load, thread: LoadThread) -> None:
        """Note in a load which files it waits for if it is rejected, and who signed its version.

        Raises:
            Rejection, Abandoned, OSError: as `signer`; as `LoadThread.run`.
        """
        attempt = load.attempt
        assert load.directory is not None  # it was just opened
        load.awaited = await thread.run(attempt, self.await_files, load.directory, also_seal=attempt.fallback)
        attempt.signer = await thread.run(attempt, self.signer, load.directory, attempt.key, attempt.control)

    async def admits(self, alias: Alias, attempt: Attempt, engines: EngineRegistry, bridge: Bridge) -> bool:
        """Say whether what is resident may be promoted now; if not, the attempt is ended."""
        if self._signatures is None:
            return True
        assert alias.target is not None  # its link asks for the version
        directory, link_stamp, awaited = alias.target.directory, alias.target.link_stamp, None
        try:
            awaited = await bridge.run("inspect", self.await_files, directory)
            attempt.signer = await bridge.run("inspect", self.signer, directory, attempt.key)
        except (Rejection, OSError) as error:
            alias.refuse(attempt, rejection_of(attempt.key.version, error), link_stamp, awaited)
            return False
        # Meanwhile a load may have taken its memory, or an operator unloaded everything.
        resident = engines.resident(attempt.key)
        if resident is None or not engines.is_usable(resident) or alias.is_unloaded:
            attempt.abandon("it was freed, or unloaded, while its signature was verified")
            return False
        return True

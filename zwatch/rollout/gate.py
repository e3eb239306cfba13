"""Which versions may be loaded and promoted: where signatures are required, those that the policy allows."""

from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from zwatch.bridge import Bridge
from zwatch.deploy.look import Awaited, await_files, open_version
from zwatch.deploy.resolving import Directory
from zwatch.deploy.seal import SIGNATURE_NAME
from zwatch.deploy.versions import VersionSummary
from zwatch.errors import Rejection
from zwatch.rollout.alias import Alias
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, VersionKey
from zwatch.rollout.load_thread import LoadThread, rejection_of
from zwatch.signing.check import Signatures

if TYPE_CHECKING:
    from zwatch.shadow.control import LoadControl


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

    def signers(self, root: Path, versions: Iterable[VersionSummary]) -> dict[str, str | None]:
        """Return who signed each version, by name, where the policy allows the signature."""
        found: dict[str, str | None] = {}
        for one in versions if self.needs_signature else ():
            with suppress(Rejection, OSError), closing(open_version(root, one.name)) as directory:
                found[one.name] = self.signer(directory, VersionKey(one.name, one.digest))
        return found

    def await_files(self, directory: Directory, *, also_seal: bool = False) -> Awaited:
        """Note the present state of all files on which it depends whether a version is rejected.

        Raises:
            OSError: one could not be looked at.
        """
        also = [] if self._signatures is None else [SIGNATURE_NAME, *self._signatures.files()]
        return await_files(directory, also_seal=also_seal, also=also)

    # --- on the event loop

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

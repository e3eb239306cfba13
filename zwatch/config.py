"""The settings of one service, and where their defaults come from."""

import ipaddress
import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from zwatch.errors import UsageError
from zwatch.fleet.settings import ALL, USUAL_LIMITS, FleetLimits, Place, Quorum, ReplicaCount, local_devices

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7860
DEFAULT_URL = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"
TOKEN_CREDENTIAL = "zwatch-token"  # noqa: S105 (a name)
"""The name of the systemd credential (`LoadCredential=`) that holds the token."""
MOST_TOKEN_BYTES = 4096
"""A header line, in which clients send the token, may have 8 KiB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one service. `memory_budget` and `history_max_bytes` are in bytes, `timeout` and `stall_timeout` in seconds, `max_work` in
    megapixels x steps x images. The options of `zwatch serve` have these names and check each value."""

    models: Path
    loras: Path | None = None
    """The LoRA root; None: `loras` beside the models root."""
    aliases: tuple[str, ...]
    """Names of links, and shell patterns for the names of others."""
    all_aliases: bool = False
    """Whether every link to a version is followed."""
    strict_links: bool
    device: str
    memory_budget: int | None
    state_dir: Path
    host: str
    port: int
    token: str | None = field(repr=False)
    insecure_no_token: bool
    allowed_hosts: tuple[str, ...]
    queue: int
    timeout: float
    stall_timeout: float | None = None
    probation: float = 60.0
    """Seconds for which a version is on trial after its promotion."""
    max_work: float
    history: bool
    output_dir: Path
    history_max_images: int | None
    history_max_bytes: int | None
    log: str
    dtype: str = "auto"
    """What versions are computed in: auto, bf16, fp16 or fp32."""
    quantize: str | None = None
    """What weights are quantized to at each load: fp8 or int8."""
    text_encoder: str = "auto"
    """Where the text encoder's weights are: auto, device or host."""
    exact: bool | None = None
    """Whether pictures have diffusers' own bits; None: as is usual on the device."""
    require_signature: Path | None = None
    """The policy that says whose signature which versions need."""
    takeover: bool = False
    """Whether a process that uses the state directory is taken over from."""
    devices: tuple[str, ...] | None = None
    """The devices of a fleet on this host: all, GPUs by their numbers, or cpu, one for each replica."""
    ray: str | None = None
    """The address of the Ray cluster on which a fleet runs."""
    replicas: ReplicaCount | None = None
    """How many replicas it has there."""
    quorum: Quorum = ALL
    """How many replicas of a fleet must be ready for a promotion."""
    places: tuple[Place, ...] = ()
    """Where each replica runs, for tests of several hosts on one machine; no option sets it."""
    fleet_limits: FleetLimits = USUAL_LIMITS
    """How long a fleet waits; no option sets it."""
    passed_hosts: tuple[str, ...] = ()
    """The hosts of the sockets that systemd passed; then `host` and `port` are those of the first one, and nothing is bound."""
    token_file: Path | None = None
    """The file that the token came from, to read it again."""

    @property
    def lora_root(self) -> Path:
        """The LoRA root."""
        return lora_root(self.models, self.loras)

    @property
    def followed(self) -> tuple[str, ...]:
        """The names and patterns of the links that are followed."""
        return (*self.aliases, "*") if self.all_aliases else self.aliases

    def with_local_replicas(self) -> "Config":
        """Return it with the devices that `--replicas` means without `--ray`: so many GPUs of this host, or replicas on its CPU.

        Raises:
            UsageError: there are not so many.
        """
        if self.replicas is None or self.ray is not None or self.devices is not None:
            return self
        if self.device not in ("auto", "cpu", "cuda"):
            raise UsageError(
                f"--device {self.device} is one device, and --replicas takes several: give --device cuda or cpu"
            )
        try:
            return replace(self, devices=local_devices(self.replicas, self.device), device="auto", replicas=None)
        except ValueError as error:
            raise UsageError(str(error)) from None

    @property
    def is_fleet(self) -> bool:
        """Whether several devices draw, under Ray."""
        return self.devices is not None or self.ray is not None

    @property
    def hosts(self) -> tuple[str, ...]:
        """All hosts on which the service listens."""
        return self.passed_hosts or (self.host,)

    def check(self) -> None:
        """Check what no option can check alone.

        Raises:
            UsageError: other machines reach the address, and there is no token, the policy of signatures cannot be used, or options
                of a fleet do not go together; with what to change.
        """
        check_fleet(self)
        reachable = [host for host in self.hosts if not is_loopback(host)]
        if reachable and self.token is None and not self.insecure_no_token:
            whose = "ListenStream= of the socket unit" if self.passed_hosts else "or ZWATCH_HOST"
            what = f"the socket on {reachable[0]}" if self.passed_hosts else f"--host {self.host}"
            raise UsageError(
                f"{what} ({whose}) is reachable from outside and there is no token: give "
                "--token-file FILE (or ZWATCH_TOKEN), or set --insecure-no-token"
            )
        if self.require_signature is not None:
            from zwatch.signing.policy import read_policy

            read_policy(self.require_signature)


def check_fleet(config: Config) -> None:
    """Check that the options of a fleet go together.

    Raises:
        UsageError: they do not; with what to change.
    """
    devices, count, quorum = config.devices, config.replicas, config.quorum
    if devices is not None and config.ray is not None:
        raise UsageError(
            "--devices begins a Ray cluster on this host, --ray ADDRESS uses one that is there: give one of the two"
        )
    if count is not None and config.ray is None:
        raise UsageError("--devices says how many replicas there are, one for each: give either it or --replicas")
    if not config.is_fleet:
        if quorum != ALL:
            raise UsageError(
                f"--quorum {quorum.text} is for several replicas: give --replicas, --devices or --ray ADDRESS, too"
            )
        return
    if devices is not None and config.device != "auto":
        raise UsageError(f"--device {config.device} is the one device of a service: give either it or --devices")
    if config.device.startswith("cuda:"):
        raise UsageError(
            f"--device {config.device}: Ray chooses each replica's GPU; give --device cuda, or cpu, with --ray"
        )
    if config.takeover:
        raise UsageError(
            "--takeover is for one process with one device: stop the service and start it again; a fleet whose controller was killed "
            "is taken over by the next one anyway, with all that its replicas have loaded"
        )
    most = (
        len(devices)
        if devices is not None and devices != ("all",)
        else None
        if count is None or count.follows_cluster
        else count.most
    )
    if most is not None and quorum.number is not None and quorum.number > most:
        raise UsageError(f"--quorum {quorum.text}: the fleet has only {most} replicas; give {most} at most, or all")


def lora_root(models: Path, given: Path | None = None) -> Path:
    """Return the LoRA root: the one that is given, else `loras` beside the models root."""
    return given if given is not None else Path(os.path.abspath(models)).parent / "loras"


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def state_directory() -> Path:
    """Return the default state directory: systemd's, else one below the home directory.

    Raises:
        UsageError: there is no home directory.
    """
    if given := os.environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(given)
    try:
        return Path.home() / ".local/state/zwatch"
    except RuntimeError:
        raise UsageError(
            "this user has no home directory for the state: give --state-dir DIR (or ZWATCH_STATE_DIR)"
        ) from None


def default_log() -> str:
    """Return the default log format: text on a terminal, else JSON."""
    return "text" if sys.stderr is not None and sys.stderr.isatty() else "json"


def read_token(file: Path | None) -> str | None:
    """Return the token from a file, else from the environment, else from systemd's credential; None if none is set.

    Raises:
        UsageError: the file cannot be read or is empty, or no client could send the token.
    """
    if file is not None:
        return _token_in(file)
    if token := os.environ.get("ZWATCH_TOKEN", "").strip():
        return _sendable(token, "ZWATCH_TOKEN")
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory, TOKEN_CREDENTIAL) if directory else None
    return _token_in(credential) if credential is not None and credential.exists() else None


def _token_in(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            raw = opened.read(MOST_TOKEN_BYTES + 1)  # it may be a device without an end
        if len(raw) > MOST_TOKEN_BYTES:
            raise UsageError(f"the token file {file} has more than {MOST_TOKEN_BYTES} bytes, expected one line")
        token = raw.decode("utf-8-sig").strip()  # Notepad begins a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the token file {file} cannot be read: {error}") from None
    if not token:
        raise UsageError(f"the token file {file} is empty")
    return _sendable(token, f"the token file {file}")


def _sendable(token: str, where: str) -> str:
    """Return the token if a client can send it in a header.

    Raises:
        UsageError: it has a line break or another character that no header may have, or is not UTF-8.
    """
    if not token.isprintable():
        raise UsageError(f"{where}: the token must be one line of printable characters, in UTF-8")
    return token

"""What `zwatch serve` can be told, from the command line or the environment."""

import ipaddress
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from zwatch.errors import UsageError

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7860
DEFAULT_URL = f"http://{DEFAULT_HOST}:{DEFAULT_PORT}"
TOKEN_CREDENTIAL = "zwatch-token"  # noqa: S105 (a name)
"""Of the systemd credential (`LoadCredential=`) that holds the token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one service. `memory_budget` and `history_max_bytes` are in bytes, `timeout` in seconds, `max_work` in
    megapixels x steps x images."""

    models: Path
    aliases: tuple[str, ...]
    strict_links: bool
    device: str
    memory_budget: int | None
    state_dir: Path
    host: str
    port: int
    token: str | None
    insecure_no_token: bool
    allowed_hosts: tuple[str, ...]
    queue: int
    timeout: float
    max_work: float
    history: bool
    output_dir: Path
    history_max_images: int | None
    history_max_bytes: int | None
    log: str

    def check(self) -> None:
        """Refuse what would be dangerous or cannot work.

        Raises:
            UsageError: with what to change.
        """
        if not is_loopback(self.host) and self.token is None and not self.insecure_no_token:
            raise UsageError(
                f"--host {self.host} is reachable from outside and there is no token: give --token-file FILE "
                "(or ZWATCH_TOKEN), or say --insecure-no-token"
            )
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port must be from 0 to 65535, got {self.port}")
        if not self.timeout > 0:  # NaN is not
            raise UsageError(f"--timeout must be more than 0 seconds, got {self.timeout}")
        if self.memory_budget is not None and self.memory_budget < 1:
            raise UsageError(f"--memory-budget must be at least 1 byte, got {self.memory_budget}")
        if not self.max_work > 0:
            raise UsageError(f"--max-work must be more than 0 megapixel-steps, got {self.max_work}")
        for name, most in (("images", self.history_max_images), ("bytes", self.history_max_bytes)):
            if most is not None and most < 1:
                raise UsageError(f"--history-max-{name} must be at least 1, got {most}; --no-history keeps none")
        if self.queue < 1:
            raise UsageError(f"--queue must be at least 1, got {self.queue}")


def is_loopback(host: str) -> bool:
    """Say whether an address can be reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def state_directory() -> Path:
    """Return the default state directory: the environment's, else systemd's, else one below the home directory."""
    given = os.environ.get("ZWATCH_STATE_DIR") or os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    return Path(given) if given else Path.home() / ".local/state/zwatch"


def default_log() -> str:
    """Return the default log format: text for a person at a terminal, else JSON."""
    return os.environ.get("ZWATCH_LOG") or ("text" if sys.stderr.isatty() else "json")


def read_token(file: Path | None) -> str | None:
    """Return the token from a file, else from the environment, else from the credential that systemd handed over; None
    if none is set.

    Raises:
        UsageError: the file cannot be read or is empty.
    """
    if file is not None:
        return _token_in(file, "--token-file")
    if token := os.environ.get("ZWATCH_TOKEN", "").strip():
        return token
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    credential = Path(directory, TOKEN_CREDENTIAL) if directory else None
    return _token_in(credential, "the credential") if credential is not None and credential.exists() else None


def _token_in(file: Path, what: str) -> str:
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} {file} cannot be read: {error}") from None
    if not token:
        raise UsageError(f"{what} {file} is empty")
    return token

"""What the command line needs of signatures: a key with its password, and one version's signer."""

import os
import sys
from pathlib import Path

import click

from zwatch.deploy import lora_files
from zwatch.deploy.seal import SIGNATURE_NAME, Seal
from zwatch.deploy.versions import opened
from zwatch.errors import Rejection, UsageError
from zwatch.progress import Progress
from zwatch.signing import sign
from zwatch.signing.check import check
from zwatch.signing.keys import SigningKey, read_signing_key
from zwatch.signing.policy import read_policy

PASSWORD = "ZWATCH_SIGN_PASSWORD"  # noqa: S105 (a name)


def signing_key(path: Path | None) -> SigningKey | None:
    """Read the private key of `--sign`; its password is in the environment, or is asked for on a terminal.

    Raises:
        UsageError: it cannot be used; with what to do.
    """

    def ask() -> str:
        if given := os.environ.get(PASSWORD):
            return given
        if not sys.stdin.isatty():
            raise UsageError(f"the key {path} is encrypted: set {PASSWORD}")
        return str(click.prompt(f"Password of {path}", hide_input=True, err=True))

    return None if path is None else read_signing_key(path, ask)


def end_seal(directory: Path, name: str, sealed: Seal, key: SigningKey | None) -> list[str]:
    """Sign a version that was just sealed under a name, or without a key remove a signature of another seal; return what was done.

    Raises:
        Rejection, OSError: as `sign`.
    """
    if key is None:
        if not sign.remove_outdated(directory):
            return []
        return [f"{directory}: removed {SIGNATURE_NAME}, which was of another seal; sign this one with --sign KEY"]
    with Progress("signing", sum((directory / path).stat().st_size for path in sealed.files)) as progress:
        done = [f"{directory}: signed by {sign.sign(directory, key, name=name, progress=progress.advance)}"]
    if not key.is_known_to_model_signing:
        done.append(
            "it is an Ed25519 signature: zwatch verifies it, the program model_signing 1.1 needs a key on an EC curve"
        )
    return done


def signer_of(directory: Path, policy: Path) -> tuple[str | None, list[str]]:
    """Return who signed a version, and why the policy does not allow it, if it does not.

    Raises:
        UsageError: the policy cannot be used.
        OSError: the version cannot be read.
    """
    with opened(directory) as fd:
        try:
            name = f"{lora_files.PREFIX}{directory.name}" if lora_files.is_lora_directory(directory) else directory.name
            return check(read_policy(policy), fd, name, None), []
        except Rejection as rejection:
            return None, [f"{rejection.code}: {rejection.reason}"]

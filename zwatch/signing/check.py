"""The check of one version's signature by a policy: of the version it reads the seal and the signature, and nothing else."""

import os
from pathlib import Path

from zwatch.deploy import seal
from zwatch.deploy.seal import SEAL_NAME, SIGNATURE_NAME
from zwatch.errors import Rejection, UsageError
from zwatch.signing.bundle import MAX_SIGNATURE, Bundle, invalid, parse_bundle
from zwatch.signing.policy import Policy, Rule, files_of, patterns_text, read_policy
from zwatch.signing.statement import Statement, compare, parse_statement


class Signatures:
    """What `--require-signature` asks for. The policy is read again for each version, so a changed one counts from the next on.

    It blocks: run it in a thread.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def check(self, directory_fd: int, name: str, digest: str | None) -> str:
        """Return who signed an opened version, if the policy allows that. `digest` is the seal's, as it was resolved.

        Raises:
            Rejection: the policy does not allow it, or cannot be read; or there is no valid seal, or another one.
            OSError: the seal or the signature could not be read.
        """
        try:
            return check(read_policy(self._path), directory_fd, name, digest)
        except UsageError as error:
            raise Rejection("policy_invalid", str(error)) from None

    def files(self) -> list[str]:
        """Return the files that a rejected version waits for, beside its own: absolute paths."""
        return files_of(self._path)


def check(policy: Policy, directory_fd: int, name: str, digest: str | None) -> str:
    """Return who signed an opened version, or `lora/NAME`, if the policy allows that.

    Raises:
        Rejection: `signature_missing`, `signature_invalid` or `signer_not_allowed`; or there is no valid seal, or its digest is
            not `digest`.
        OSError: the seal or the signature could not be read.
        UsageError: a library is missing, or what the policy names cannot be used.
    """
    seal_bytes = seal.read_seal_bytes(directory_fd)
    sealed = seal.parse_seal(seal_bytes)
    if digest is not None and sealed.digest != digest:
        raise Rejection("seal_changed", f"{SEAL_NAME} was rewritten: its digest is {sealed.digest}, expected {digest}")
    rules = [rule for rule in policy.rules if rule.covers(name)]
    if not rules:
        patterns = patterns_text(policy.rules)
        raise Rejection(
            "signer_not_allowed", f"{name}: the policy {policy.path} allows nobody to sign it, but {patterns}"
        )
    bundle = parse_bundle(_signature_bytes(directory_fd, name))
    signer, statement = _proved(rules, bundle, policy.path)
    compare(statement, sealed, seal_bytes)
    return signer


def _signature_bytes(directory_fd: int, name: str) -> bytes:
    try:
        with seal.opened_file(directory_fd, SIGNATURE_NAME) as fd:
            if (size := os.fstat(fd).st_size) > MAX_SIGNATURE:
                raise invalid(f"it has {size} bytes, expected at most {MAX_SIGNATURE}")
            return seal.read_whole(fd)
    except Rejection as rejection:
        if rejection.code == "file_missing":
            what = f"{name}: there is no {SIGNATURE_NAME}, and the policy requires a signature; sign it with `zwatch seal --sign KEY`"
            raise Rejection("signature_missing", what) from None
        if rejection.code == "file_not_regular":
            raise Rejection("signature_invalid", rejection.reason) from None
        raise


def _proved(rules: list[Rule], bundle: Bundle, policy: Path) -> tuple[str, Statement]:
    """Return the first signer whose signature it is, and what was signed."""
    refused: list[Rejection] = []
    for rule in rules:
        try:
            proof = rule.signer.prove(bundle)
            statement = parse_statement(proof.payload)
            at = proof.signed_at or statement.signed_at
            if rule.not_before is not None and (at is None or at < rule.not_before):
                when = "states no time of signing" if at is None else f"was signed at {at:%Y-%m-%dT%H:%M:%SZ}"
                raise Rejection(
                    "signer_not_allowed", f"it {when}, not before {rule.not_before:%Y-%m-%dT%H:%M:%SZ} is allowed"
                )
            return proof.signer, statement
        except Rejection as rejection:
            refused.append(rejection)
    wrong = next((one for one in refused if one.code == "signature_invalid"), None)
    if wrong is not None:
        raise wrong.with_traceback(None)
    reasons = "; ".join(dict.fromkeys(one.reason for one in refused))
    raise Rejection("signer_not_allowed", f"{SIGNATURE_NAME}: the policy {policy} does not allow its signer: {reasons}")

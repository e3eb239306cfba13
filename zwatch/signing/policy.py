"""The policy of `--require-signature`: a TOML file that says whose signature which versions need."""

import importlib.util
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from zwatch.deploy.durable import read_regular
from zwatch.deploy.oserrors import is_missing
from zwatch.errors import UsageError
from zwatch.signing.keys import read_pem, read_public_key
from zwatch.signing.library import cryptography_library
from zwatch.signing.signers import CertificateSigner, IdentitySigner, KeySigner, Signer

MAX_POLICY = 2**20
"""Longest accepted policy, bytes."""
_MOST_LINKS = 40
"""Links on the way of one path, as Linux follows them."""
_FILES = ("key", "roots", "trusted_root")
_FIELDS = ("versions", *_FILES, "identity", "issuer", "not_before")


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[allow]]`: the versions of these patterns may be signed by this signer, not before this time."""

    versions: tuple[str, ...]
    signer: Signer
    not_before: datetime | None

    def covers(self, name: str) -> bool:
        """Say whether it is for this name. As in a shell, `*` does not match a slash."""
        parts = name.split("/")
        return any(
            len(pattern) == len(parts) and all(map(fnmatchcase, parts, pattern))
            for pattern in (one.split("/") for one in self.versions)
        )


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy that was read: its file, and its rules in their order."""

    path: Path
    rules: tuple[Rule, ...]


def read_policy(path: Path) -> Policy:
    """Read a policy and the keys and certificates that it names, paths relative to its own directory.

    Raises:
        UsageError: it cannot be read, or it is not as documented; with the entry and the field.
    """
    try:
        whole = tomllib.loads(read_regular(path, MAX_POLICY).decode("utf-8"))
    except OSError as error:
        raise UsageError(f"the policy {path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise UsageError(f"the policy {path} is nested too deeply") from None
    except ValueError as error:  # also UnicodeDecodeError and TOMLDecodeError
        raise UsageError(f"the policy {path} is no TOML: {str(error)[:200]}") from None
    if unknown := sorted(set(whole) - {"allow"}):
        raise UsageError(f"the policy {path}: {unknown[0][:100]!r} is not known, expected [[allow]] entries alone")
    entries = whole.get("allow")
    if not isinstance(entries, list) or not entries or not all(isinstance(one, dict) for one in entries):
        raise UsageError(f"the policy {path} has no [[allow]] entry, so no version could be loaded")
    rules = []
    for number, entry in enumerate(entries, 1):
        try:
            rules.append(_rule(entry, path.parent))
        except UsageError as error:
            raise UsageError(f"the policy {path}, [[allow]] entry {number}: {error}") from None
    return Policy(path, tuple(rules))


def files_of(path: Path) -> list[str]:
    """Return the absolute paths of a policy and of all files that it names, as far as they can be looked at: where they lead, and every
    link on the way, which may be exchanged for another."""
    named = [path]
    try:
        for entry in tomllib.loads(read_regular(path, MAX_POLICY).decode("utf-8"))["allow"]:
            named += [path.parent / entry[field] for field in _FILES if field in entry]
    except (OSError, ValueError, LookupError, TypeError, RecursionError, AttributeError):
        pass  # the attempt says what is wrong
    found = [step for one in named if _can_be_looked_at(one) for step in (*_links_on(one), os.path.realpath(one))]
    return list(dict.fromkeys(found))


def _links_on(path: Path) -> list[str]:
    """Return the absolute paths of the links through which a path leads."""
    links: list[str] = []
    here, left = "/", os.path.join(os.getcwd(), path).split("/")[::-1]
    while left and len(links) < _MOST_LINKS:
        name = left.pop()
        if name == "..":
            here = os.path.dirname(here)
            continue
        if name in ("", "."):
            continue
        try:
            text = os.readlink(os.path.join(here, name))
        except OSError:  # no link
            here = os.path.join(here, name)
            continue
        links.append(os.path.join(here, name))
        here = "/" if text.startswith("/") else here
        left += text.split("/")[::-1]
    return links


def _can_be_looked_at(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError as error:
        return is_missing(error)
    except ValueError:  # a null byte
        return False
    return True


def _rule(entry: dict[str, Any], folder: Path) -> Rule:
    if unknown := sorted(set(entry) - set(_FIELDS)):
        raise UsageError(f"{unknown[0][:100]!r} is not known, expected {', '.join(_FIELDS)}")
    versions = entry.get("versions")
    patterns = [versions] if isinstance(versions, str) else versions
    if not isinstance(patterns, list) or not patterns or not all(isinstance(one, str) and one for one in patterns):
        raise UsageError("versions is missing, expected a pattern of names such as 'v*', or a list of them")
    return Rule(tuple(patterns), _signer(entry, folder), _not_before(entry.get("not_before")))


def _signer(entry: dict[str, Any], folder: Path) -> Signer:
    for field in (*_FILES, "identity", "issuer"):
        if field in entry and (not isinstance(entry[field], str) or not entry[field] or "\0" in entry[field]):
            raise UsageError(f"{field} is {entry[field]!r:.100}, expected a text")
    given = {field for field in entry if field not in ("versions", "not_before")}
    if given == {"key"}:
        path = folder / entry["key"]
        return KeySigner(read_public_key(path), path.name)
    if given == {"roots", "identity"}:
        return CertificateSigner(_roots(folder / entry["roots"]), entry["identity"])
    if given in ({"identity", "issuer"}, {"identity", "issuer", "trusted_root"}):
        trusted_root = folder / entry["trusted_root"] if "trusted_root" in entry else None
        _check_trusted_root(trusted_root)
        return IdentitySigner(entry["identity"], entry["issuer"], trusted_root)
    found = f"found {' and '.join(sorted(given))}" if given else "found none of them"
    raise UsageError(
        f"expected who signs: `key`, or `roots` with `identity`, or `identity` with `issuer` (and `trusted_root`); {found}"
    )


def _roots(path: Path) -> Any:
    data = read_pem(path, "the roots")
    cryptography_library()
    from cryptography.x509 import load_pem_x509_certificates

    if b"PRIVATE KEY-----" in data:
        raise UsageError(f"the roots {path} hold a private key, expected certificates alone")
    try:
        return tuple(load_pem_x509_certificates(data))
    except ValueError as error:
        raise UsageError(f"the roots {path} hold no certificate that can be used: {error}") from None


def _check_trusted_root(path: Path | None) -> None:
    """Check what can be checked without importing sigstore, which takes a second or two."""
    if importlib.util.find_spec("sigstore") is None:
        raise UsageError("identities need the package sigstore: pip install 'zwatch[signing]'")
    if path is not None and not path.is_file():
        raise UsageError(f"the trusted root {path} is not there, expected a trusted_root.json of Sigstore")


def _not_before(found: object) -> datetime | None:
    if found is None:
        return None
    if not isinstance(found, datetime) or found.tzinfo is None:
        raise UsageError(
            f"not_before is {str(found)[:100]!r}, expected a time with its zone, such as 2026-01-31T00:00:00Z"
        )
    return found.astimezone(UTC)


def patterns_text(rules: Sequence[Rule]) -> str:
    """Return all patterns of names, for a sentence."""
    return ", ".join(repr(one) for rule in rules for one in rule.versions)

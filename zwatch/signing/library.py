"""The libraries of the extra `zwatch[signing]`, imported when a policy or a key is used and not before."""

from zwatch.errors import UsageError

_HOW = "signatures need more libraries: pip install 'zwatch[signing]'"


def cryptography_library() -> None:
    """Import the cryptography package.

    Raises:
        UsageError: it is not installed; with the command that installs it.
    """
    try:
        import cryptography.x509.verification  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{_HOW} ({error})") from None


def sigstore_library() -> None:
    """Import the sigstore package: a second or two.

    Raises:
        UsageError: it is not installed; with the command that installs it.
    """
    try:
        import sigstore.verify  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{_HOW} ({error})") from None

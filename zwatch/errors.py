"""Every error that zwatch raises on purpose, and whose fault each one is."""

from collections.abc import Callable
from enum import Enum
from types import TracebackType


class ZwatchError(Exception):
    """Base of all of them."""


class Retry(Enum):
    """When a rejected version is tried again without anybody's hand."""

    ON_CHANGE = "when a file that its seal names changes"
    BACKOFF = "after a pause that doubles"
    NEVER = "when it is linked anew or sealed anew"


_RETRY = {
    "seal_missing": Retry.NEVER,  # a seal that appears is a new digest
    "seal_invalid": Retry.NEVER,
    "seal_changed": Retry.ON_CHANGE,
    "file_missing": Retry.ON_CHANGE,
    "file_not_regular": Retry.ON_CHANGE,
    "size_mismatch": Retry.ON_CHANGE,
    "hash_mismatch": Retry.ON_CHANGE,
    "header_invalid": Retry.ON_CHANGE,
    "version_mismatch": Retry.ON_CHANGE,
    "config_invalid": Retry.ON_CHANGE,
    "class_not_allowed": Retry.ON_CHANGE,
    "weights_mismatch": Retry.ON_CHANGE,
    "bad_image": Retry.NEVER,
    "set_aside": Retry.NEVER,
    "insufficient_memory": Retry.BACKOFF,
    "out_of_memory": Retry.BACKOFF,
    "io_error": Retry.BACKOFF,
    "device_error": Retry.BACKOFF,
    "internal_error": Retry.BACKOFF,
}
REJECTION_CODES = tuple(_RETRY)


class Rejection(ZwatchError):
    """A version was decided against: its files, its weights or its images are not right.

    `code` is one of the keys above and stable; `reason` is a sentence that names the file, what was found
    and what was expected.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

    @property
    def retry(self) -> Retry:
        """When this rejection is worth another try."""
        return _RETRY[self.code]


class Abandoned(ZwatchError):
    """A load was superseded by a newer wish."""


class GenerationCancelled(ZwatchError):
    """A request was cancelled between two denoising steps."""


class RepointError(ZwatchError):
    """A link could not be repointed; the message says why and what to type."""


class UsageError(ZwatchError):
    """The command line or the environment asks for something that cannot be."""


class RequestError(ZwatchError):
    """A request gets this answer instead of a picture.

    `status` is the HTTP status, `code` and `param` go into the error object, `headers` beside it, and `extra`
    beside `error` in the body.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.headers = headers or {}
        self.extra = extra or {}


class Translating:
    """Errors that leave this block do so as what `translate` makes of them, or unchanged where that is None.

    Not a generator: with an error that made it raise another, a generator is in a ring of references (the error's
    traceback, its frame, its caller's frame, the error), and since CPython 3.12 all that the error's frames hold, here the
    device memory of a load, would stay until a garbage collection.
    """

    def __init__(self, translate: Callable[[Exception], Exception | None]) -> None:
        self._translate = translate

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave it."""
        if isinstance(error, Exception):
            other = self._translate(error)
            try:
                if other is not None:
                    raise other from error
            finally:
                del other

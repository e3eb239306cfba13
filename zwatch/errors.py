"""Every error that zwatch raises deliberately, and whose fault it is."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import TracebackType


class ZwatchError(Exception):
    """Base class of all errors."""


class Retry(Enum):
    """When a rejected version is tried again automatically."""

    ON_CHANGE = "when a file that its seal names, its signature or the signature policy changes"
    BACKOFF = "after a pause that doubles"
    NEVER = "when it is linked or sealed again"


_RETRY = {
    "seal_missing": Retry.NEVER,  # a seal that appears is a new digest
    "seal_invalid": Retry.NEVER,
    "seal_changed": Retry.ON_CHANGE,
    "signature_missing": Retry.ON_CHANGE,  # the signature and the policy's files are among those that are watched
    "signature_invalid": Retry.ON_CHANGE,
    "signer_not_allowed": Retry.ON_CHANGE,
    "policy_invalid": Retry.ON_CHANGE,
    "file_missing": Retry.ON_CHANGE,
    "file_not_regular": Retry.ON_CHANGE,
    "size_mismatch": Retry.ON_CHANGE,
    "hash_mismatch": Retry.ON_CHANGE,
    "header_invalid": Retry.ON_CHANGE,
    "version_mismatch": Retry.ON_CHANGE,
    "config_invalid": Retry.ON_CHANGE,
    "class_not_allowed": Retry.ON_CHANGE,
    "weights_mismatch": Retry.ON_CHANGE,
    "golden_invalid": Retry.ON_CHANGE,
    "bad_image": Retry.NEVER,
    "golden_mismatch": Retry.NEVER,
    "set_aside": Retry.NEVER,
    "withdrawn": Retry.NEVER,
    "insufficient_memory": Retry.BACKOFF,
    "out_of_memory": Retry.BACKOFF,
    "io_error": Retry.BACKOFF,
    "stalled": Retry.BACKOFF,
    "device_error": Retry.BACKOFF,
    "internal_error": Retry.BACKOFF,
}
REJECTION_CODES = tuple(_RETRY)


class Rejection(ZwatchError):
    """A version was rejected: its files, its weights or its images are wrong.

    `code` is one of the keys above and stable; `reason` is a sentence that names the file, what was found
    and what was expected.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason

    @property
    def retry(self) -> Retry:
        """When a version rejected for this reason is tried again."""
        return _RETRY[self.code]


class Abandoned(ZwatchError):
    """A load was superseded by a newer wish."""


class GenerationCancelled(ZwatchError):
    """A request was cancelled between two denoising steps."""


class Refused(ZwatchError):
    """An import was refused or failed; the message says what was found and what to do. Nothing that looks like a version is
    left."""


class Ended(KeyboardInterrupt):
    """A signal ended a command in order, as Ctrl-C does; `status` is its exit status."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.status = 128 + number


def status_of(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of a command that was interrupted."""
    return interrupt.status if isinstance(interrupt, Ended) else 130


class NoRoom(Refused):
    """The disk is full, or would be. What an import has written so far is kept for the next run."""


class RepointError(ZwatchError):
    """A link could not be repointed; the message says why and what to type."""


class UsageError(ZwatchError):
    """The command line or the environment asks for something impossible."""


class Ending(Enum):
    """How a run ended. The values are part of the state file and of the metrics."""

    STOPPED = "stopped"
    """By a signal, or by a process that took over."""
    FAILED = "failed"
    """By an error that another process need not meet."""
    DEVICE_LOST = "device_lost"
    """The device could not be used any more."""
    HUNG = "hung"
    """A generation did not come back."""
    KILLED = "killed"
    """Without a word: `kill -9`, a power failure, systemd's watchdog."""


class FatalError(ZwatchError):
    """What cannot be repeated in this process, and what a new configuration must change: the service stops in order.

    `status` is the exit status: 1 if another process can try again, 2 if the configuration is wrong. `is_crash` says that
    it counts as a crash of the versions that serve or are tried: one of them may have caused it.
    """

    def __init__(self, reason: str, *, status: int = 1, is_crash: bool = False, ending: Ending = Ending.FAILED) -> None:
        super().__init__(reason)
        self.status = status
        self.is_crash = is_crash
        self.ending = ending


class Fault(Enum):
    """Whose fault an answered error is."""

    CLIENT = "client"
    SERVICE = "service"


@dataclass(frozen=True, slots=True)
class RequestErrorKind:
    """What holds for every error of one code. `retry` goes into `x-should-retry`, for clients that would try again by
    themselves; None leaves it to the status. `is_outcome` says that a request for images can end so: metrics count it."""

    status: int
    fault: Fault
    meaning: str
    retry: bool | None = None
    is_outcome: bool = False


REQUEST_ERRORS: Mapping[str, RequestErrorKind] = {
    "invalid_json": RequestErrorKind(400, Fault.CLIENT, "The body is neither a JSON object nor a form."),
    "invalid_value": RequestErrorKind(
        400, Fault.CLIENT, "A field has a wrong value; `param` names it.", is_outcome=True
    ),
    "unknown_field": RequestErrorKind(400, Fault.CLIENT, "There is no such field; `param` names it."),
    "invalid_http": RequestErrorKind(400, Fault.CLIENT, "The request is not HTTP."),
    "unauthorized": RequestErrorKind(401, Fault.CLIENT, "The token is missing or wrong."),
    "forbidden_host": RequestErrorKind(403, Fault.CLIENT, "The `Host` is not one of this service."),
    "forbidden_origin": RequestErrorKind(403, Fault.CLIENT, "A page of another origin may not change anything."),
    "not_found": RequestErrorKind(404, Fault.CLIENT, "There is no such path, job, picture, version or alias."),
    "model_not_found": RequestErrorKind(
        404, Fault.CLIENT, "`model` is neither an alias nor a resident version.", is_outcome=True
    ),
    "method_not_allowed": RequestErrorKind(405, Fault.CLIENT, "The path does not take this method."),
    "not_acceptable": RequestErrorKind(406, Fault.CLIENT, "No type in `Accept` is available."),
    "request_timeout": RequestErrorKind(408, Fault.CLIENT, "The body did not arrive in time."),
    "rejected": RequestErrorKind(409, Fault.CLIENT, "It was rejected; `reason` has the attempt."),
    "cancelled": RequestErrorKind(409, Fault.CLIENT, "The job was cancelled.", retry=False, is_outcome=True),
    "length_required": RequestErrorKind(411, Fault.CLIENT, "The request has a body without a length."),
    "payload_too_large": RequestErrorKind(413, Fault.CLIENT, "The body is longer than 1 MiB."),
    "unsupported_encoding": RequestErrorKind(415, Fault.CLIENT, "The body's `Content-Encoding` is not known."),
    "queue_full": RequestErrorKind(429, Fault.CLIENT, "No more requests may wait.", is_outcome=True),
    "too_many_guesses": RequestErrorKind(429, Fault.CLIENT, "Too many wrong tokens came from this address."),
    "internal_error": RequestErrorKind(
        500, Fault.SERVICE, "An unexpected error; see the log entry with the answer's `X-Request-Id`."
    ),
    "generation_failed": RequestErrorKind(
        500, Fault.SERVICE, "The model or the device failed.", retry=False, is_outcome=True
    ),
    "out_of_memory": RequestErrorKind(500, Fault.SERVICE, "Memory ran out.", retry=False, is_outcome=True),
    "model_not_loaded": RequestErrorKind(503, Fault.SERVICE, "Nothing serves at present.", is_outcome=True),
    "shutting_down": RequestErrorKind(503, Fault.SERVICE, "The service stops.", is_outcome=True),
    "too_many_connections": RequestErrorKind(503, Fault.SERVICE, "Too many connections are open."),
    "decoder_busy": RequestErrorKind(503, Fault.SERVICE, "Pictures of others are being decoded."),
    "timeout": RequestErrorKind(
        504,
        Fault.SERVICE,
        "The request's own limit has passed, or a disk did not answer.",
        retry=False,
        is_outcome=True,
    ),
}
"""Every error that a request can get, by its code: the one place that knows statuses and faults."""


MOST_RETRY_AFTER = 60
"""Seconds: clients such as the `openai` package do not wait longer, but give up at once."""


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that tells a client when to try again: whole seconds, 1 to 60."""
    return {"Retry-After": str(math.ceil(min(max(seconds, 1), MOST_RETRY_AFTER)))}


class RequestError(ZwatchError):
    """A request is answered with this error instead of an image.

    `code` is one of the keys above and gives the HTTP status, unless `status` gives another one. `code` and `param` go into
    the error object, `headers` into the answer, and `extra` next to `error` into the body.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
        extra: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        kind = REQUEST_ERRORS[code]
        self.status = kind.status if status is None else status
        self.code = code
        self.message = message
        self.param = param
        retry = {} if kind.retry is None else {"x-should-retry": str(kind.retry).lower()}
        self.headers = {**retry, **(headers or {})}
        self.extra = extra or {}

    def to_keep(self) -> "RequestError":
        """Return it without what led to it: the frames of its traceback, and of the errors that it came of, would keep alive
        what they hold, such as a version's weights, for as long as it is kept."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)

    def with_headers(self, headers: dict[str, str]) -> "RequestError":
        """Return the same error with more headers; many requests may be answered with this one."""
        return RequestError(
            self.code, self.message, status=self.status, param=self.param,
            headers={**self.headers, **headers}, extra=self.extra,
        )  # fmt: skip


class Translating:
    """A context manager that replaces an error by what `translate` returns for it; None leaves the error unchanged.

    Not a generator: a generator that raises an error because of another one is part of a reference cycle (the error's
    traceback, its frame, its caller's frame, the error). Since CPython 3.12 everything that the error's frames hold, here
    the device memory of a load, would then stay allocated until a garbage collection.
    """

    def __init__(self, translate: Callable[[Exception], Exception | None]) -> None:
        self._translate = translate

    def __enter__(self) -> None:
        """Enter the block."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the block; raise the translated error, if there is one."""
        if isinstance(error, Exception):
            other = self._translate(error)
            try:
                if other is not None:
                    raise other from error
            finally:
                del other

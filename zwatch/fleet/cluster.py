"""What a fleet needs of Ray, and nothing else imports Ray: actors that are found again by their names, calls, and streams of events.

Everything here may be called by any thread but the event loop's: it blocks.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Mapping
from typing import Any

from zwatch.errors import FatalError
from zwatch.fleet.messages import Failure, ReplicaSettings
from zwatch.fleet.replica import Replica
from zwatch.shadow.faults import named

NAMESPACE = "zwatch"
_THREADS = 32
"""Of a replica: a call that waits holds up no other one."""
_NAME_SECONDS = 30.0
"""For the name of a replica that was ended to be free again."""
_GET_SECONDS = 60.0
"""For an answer that is there to come from its host, which may be cut off just now."""

_log = logging.getLogger(__name__)


class Gone(Exception):
    """A replica did not answer because it has died, or cannot be reached."""


def _imported() -> Any:
    """Import Ray.

    Raises:
        FatalError: it cannot be imported.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else a call after the end would begin a cluster of its own on this machine.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    if "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"  # Ray does so only where it finds the cluster itself
    try:
        import ray
    except ImportError as error:
        raise FatalError(
            f"--devices and --ray need Ray, which cannot be imported ({error}): pip install 'zwatch[ray]'", status=2
        ) from error
    return ray


def _has_token() -> bool:
    """Return whether this user has a token for Ray's clusters."""
    is_set = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return is_set or os.path.exists(os.path.expanduser("~/.ray/auth_token"))


class Call:
    """A call that was begun."""

    def __init__(self, ray: Any, ref: Any) -> None:
        self._ray = ray
        self.ref = ref

    def result(self) -> Any:
        """Return what the replica returned, once it has; a `Failure` if the call itself failed there.

        Raises:
            Gone: the replica has died or cannot be reached.
        """
        return _got(self._ray, self.ref)


def _got(ray: Any, ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=_GET_SECONDS)
    except ray.exceptions.RayTaskError as error:
        _log.error("a call of a replica failed", exc_info=error)
        return Failure("error", named(error.cause if isinstance(error.cause, Exception) else error))
    except ray.exceptions.RayError as error:
        raise Gone(_first_line(error)) from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]


class Stream:
    """The events of a drawing."""

    def __init__(self, ray: Any, generator: Any) -> None:
        self._ray, self._generator = ray, generator

    def next(self, seconds: float) -> Any:
        """Return the next event; None if there is none within so many seconds.

        Raises:
            Gone: the replica has died or cannot be reached.
        """
        try:
            ready, _ = self._ray.wait([self._generator], timeout=seconds, fetch_local=False)
            if not ready:
                return None
            ref = next(self._generator)
        except StopIteration:
            raise Gone("its events end before their last") from None
        except self._ray.exceptions.RayError as error:
            raise Gone(_first_line(error)) from None
        return _got(self._ray, ref)


class Actor:
    """A replica as the controller reaches it."""

    def __init__(self, ray: Any, handle: Any) -> None:
        self._ray, self._handle = ray, handle

    def call(self, method: str, *args: object) -> Call:
        """Begin a call.

        Raises:
            Gone: the replica has ended for good.
        """
        try:
            return Call(self._ray, getattr(self._handle, method).remote(*args))
        except self._ray.exceptions.RayError as error:
            raise Gone(_first_line(error)) from None

    def tell(self, method: str, *args: object) -> None:
        """Call without waiting for what becomes of it."""
        with contextlib.suppress(Gone):
            self.call(method, *args)

    def draw(self, *args: object) -> Stream:
        """Begin a drawing.

        Raises:
            Gone: the replica has ended for good.
        """
        try:
            return Stream(self._ray, self._handle.draw.options(num_returns="streaming").remote(*args))
        except self._ray.exceptions.RayError as error:
            raise Gone(_first_line(error)) from None

    def end(self, *, for_good: bool) -> None:
        """End its process, also one that is stopped; Ray begins it again unless it is `for_good`."""
        with contextlib.suppress(Exception):  # it has ended
            self._ray.kill(self._handle, no_restart=for_good)


class Cluster:
    """The cluster that this process is connected to."""

    def __init__(self, address: str) -> None:
        """Connect.

        Raises:
            FatalError: Ray is not installed, or there is no cluster at the address.
        """
        self._ray = ray = _imported()
        logging.getLogger("ray").setLevel(logging.ERROR)  # it warns of what this process does itself, such as signals
        try:
            ray.init(
                address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False
            )  # fmt: skip
        except Exception as error:  # ConnectionError, ValueError, RuntimeError: as it likes
            raise FatalError(f"the Ray cluster at {address} cannot be used: {_first_line(error)}") from error

    def gpus(self) -> int:
        """Return how many GPUs the cluster has."""
        return int(self._ray.cluster_resources().get("GPU", 0))

    def nodes(self) -> int:
        """Return how many nodes the cluster has."""
        return sum(bool(node["Alive"]) for node in self._ray.nodes())

    def found(self, prefix: str) -> dict[str, Actor]:
        """Return the replicas whose names begin so, by the rest of their names."""
        names = [name for name in self._ray.util.list_named_actors() if name.startswith(prefix)]
        found = {}
        for name in names:
            with contextlib.suppress(ValueError):  # it ended meanwhile
                found[name.removeprefix(prefix)] = Actor(self._ray, self._ray.get_actor(name, NAMESPACE))
        return found

    def begin(
        self, name: str, settings: ReplicaSettings, *, gpus: float, cpus: float, resources: Mapping[str, float]
    ) -> Actor:
        """Begin a replica; Ray places it where the resources are, now or once there are some, and begins it again when it dies."""
        made = self._ray.remote(Replica).options(
            name=name, namespace=NAMESPACE, lifetime="detached", max_restarts=-1, max_task_retries=0,
            max_concurrency=_THREADS, num_gpus=gpus, num_cpus=cpus, resources=dict(resources), scheduling_strategy="SPREAD",
        )  # fmt: skip
        end = time.monotonic() + _NAME_SECONDS
        while True:
            try:
                return Actor(self._ray, made.remote(settings))
            except ValueError:  # the name is not free yet
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)

    def done(self, calls: Iterable[Call], seconds: float) -> set[Call]:
        """Return those of some calls that have ended, once one has, or after so many seconds."""
        by_ref = {call.ref: call for call in calls}
        if not by_ref:
            time.sleep(seconds)
            return set()
        ready, _ = self._ray.wait([*by_ref], num_returns=1, timeout=seconds, fetch_local=False)
        if ready and len(by_ref) > 1:  # and others that have ended too
            ready, _ = self._ray.wait([*by_ref], num_returns=len(by_ref), timeout=0, fetch_local=False)
        return {by_ref[ref] for ref in ready}

    def close(self) -> None:
        """Leave the cluster. The replicas stay."""
        self._ray.shutdown()

"""Judging the first image of an engine whose warm-up image was not made again, because this machine made it before."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge
from zwatch.errors import Abandoned, Rejection
from zwatch.rollout.alias import Alias
from zwatch.rollout.attempt import AttemptRunner
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt

if TYPE_CHECKING:
    from zwatch.engine.parameters import Generation
    from zwatch.engine.pipeline import Engine

_log = logging.getLogger(__name__)


class FirstImageJudge:
    """Lets an engine serve on if its first image is usable. If not, its warm-up image decides: without a usable one, every
    alias refuses the version and serves what it would have served had it been rejected at its load."""

    def __init__(
        self, bridge: Bridge, engines: EngineRegistry, records: Mapping[str, Alias], runner: AttemptRunner
    ) -> None:
        self._bridge = bridge
        self._engines = engines
        self._records = records
        self._runner = runner

    async def judge(self, engine: "Engine", generation: "Generation") -> bool:
        """Return whether an engine that is not judged yet can go on serving."""
        factory = self._runner.factory
        assert factory is not None  # it made the engine
        fault = await self._bridge.run("inspect", factory.fault, engine, generation)
        if fault is None:
            return True
        _log.warning(
            "the first image of %s is not usable (%s); its warm-up image decides", engine.version, fault.reason
        )
        attempts = [
            (alias, self._runner.begin_again(alias)) for alias in self._records.values() if _serves(alias, engine)
        ]
        if not attempts:
            return False
        rejection = await self._rejection(attempts[0][1], engine)
        is_bad = rejection is not None and rejection.code in ("bad_image", "golden_mismatch")
        if is_bad:
            factory.distrust(engine.digest)
        elif rejection is not None:  # a fault that may pass is no reason to withdraw what serves
            _log.warning("whether %s can make images is not known: %s", engine.version, rejection.reason)
        for alias, attempt in attempts:
            if rejection is None:
                attempt.promote()
            elif is_bad and (resident := alias.serving) is not None and resident.engine is engine:
                resident.is_bad = True
                alias.refuse(attempt, rejection, alias.link_stamp, None)
                self._engines.withdraw(alias.key)
            else:  # if it is bad, another version was promoted meanwhile
                attempt.abandon(None if is_bad else rejection.reason)
            self._runner.end(attempt)
        return not is_bad

    async def _rejection(self, attempt: Attempt, engine: "Engine") -> Rejection | None:
        """Make an engine's warm-up image, and return why it is not usable."""
        try:
            await self._runner.warm_again(attempt, engine)
        except Abandoned:
            return Rejection("stalled", "the warm-up image was given up")
        except Rejection as rejection:
            return rejection
        return None


def _serves(alias: Alias, engine: "Engine") -> bool:
    return alias.serving is not None and alias.serving.engine is engine

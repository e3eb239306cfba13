"""How the run before ended, and what its crash counts for."""

import logging

from zwatch.errors import Ending
from zwatch.rollout.saved import Failure, SavedState

_log = logging.getLogger(__name__)


def begin_run(saved: SavedState) -> Failure | None:
    """Note and log how the previous run ended, and begin this one; return how it ended, None if there was none."""
    before = saved.ending()
    if before is not None and before.ending is not Ending.STOPPED:
        _log.warning("the previous run ended by itself: %s", before.reason)
    if crashed := saved.begin_run():
        names = " and ".join(key.version for key in crashed)
        _log.warning(
            "the previous run crashed: that counts for %s, which did not come back, or served or was tried and had not "
            "proved itself",
            names,
        )
    return before

"""The lock of the state directory, when the process that had it has ended."""

import os

from zwatch import systemd
from zwatch.handover.taking import _lock_if_free
from zwatch.rollout.state import LOCK, StateFile


def test_the_lock_is_held_from_the_moment_in_which_it_was_found_free(tmp_path):
    """Regression: the other process was restarted while this one imported torch, and had the lock again."""
    lock = tmp_path / LOCK
    assert _lock_if_free(lock).lock is None, "there is none yet"
    StateFile(tmp_path).close()
    free = _lock_if_free(lock)
    assert _lock_if_free(lock) is None, "for any other process"
    state = StateFile(tmp_path, free.lock)
    assert _lock_if_free(lock) is None
    state.close()
    again = _lock_if_free(lock)
    assert again.lock is not None
    os.close(again.lock)


def test_a_process_of_another_control_group_is_not_of_this_unit():
    assert systemd.is_of_this_unit(os.getpid())
    assert not systemd.is_of_this_unit(2**22 + 1), "there is no such process"

"""What a process does in a state directory whose files belong to another user. It imports everything before it becomes one."""

import io
import logging
import os

from zwatch.engine.kept_files import KeptFiles
from zwatch.rollout.saved import SavedState, serialise
from zwatch.rollout.state import StateFile


def use(state, user, pipe):
    """As another user, read and write what is kept in a state directory; send what was logged."""
    serialise(SavedState())  # what this imports late, this user cannot read
    log = io.StringIO()
    logging.basicConfig(level="INFO", stream=log, force=True)
    os.setgroups([])
    os.setgid(user)
    os.setuid(user)
    file = StateFile(state)
    assert file.read() == SavedState()
    file.write(serialise(SavedState(running=True)))
    assert file.read() == SavedState(running=True)
    kept = KeptFiles(state, ".proven", 4)
    assert kept.read("kept") is None
    kept.write("kept", b"ours")
    assert kept.read("kept") == b"ours"
    pipe.send(log.getvalue())

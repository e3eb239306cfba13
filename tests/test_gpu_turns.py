"""A test that needs the GPU for itself has it so, and does not wait for ever."""

import fcntl
import threading
from concurrent.futures import ThreadPoolExecutor

from tests.gpu_turns import _ENTRANCE, turn


def test_others_use_the_gpu_together_and_one_that_wants_it_alone_has_it_alone():
    together, passed, inside = threading.Barrier(2), threading.Event(), []

    def beside():
        with turn(alone=False):
            together.wait(60)  # both are inside
            inside.append("beside")

    def alone():
        with turn(alone=True):
            inside.append("alone")
            assert not passed.wait(0.1)
            inside.append("still alone")

    def late():
        with turn(alone=False):
            passed.set()

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(beside), pool.submit(beside)]:
            done.result()
        with turn(alone=False):
            waits = pool.submit(alone)
            while not is_waited_for():
                pass
            comes = pool.submit(late)
            assert not passed.wait(0.1), "it waits behind the one that wants the GPU alone"
            assert inside == ["beside", "beside"]
        for done in (waits, comes):
            done.result()
    assert inside == ["beside", "beside", "alone", "still alone"]


def is_waited_for():
    """Return whether the entrance is taken."""
    with _ENTRANCE.open() as entrance:
        try:
            fcntl.flock(entrance, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False

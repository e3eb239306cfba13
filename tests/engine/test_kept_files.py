"""Files that are kept for the next start: a load does without them where their disk does not answer."""

import threading
import time

import pytest

from zwatch.engine import kept_files
from zwatch.engine.kept_files import KeptFiles


@pytest.fixture
def gone(monkeypatch):
    """Lets the disk not answer from the call on, until the end of the test."""
    back = threading.Event()
    reads, makes = kept_files.read_regular, kept_files.make_directory

    def go():
        monkeypatch.setattr(kept_files, "read_regular", lambda *given: back.wait(60) and reads(*given))
        monkeypatch.setattr(kept_files, "make_directory", lambda *given: back.wait(60) and makes(*given))
        return back

    yield go
    back.set()


def test_a_disk_that_does_not_answer_holds_up_nobody_and_is_used_again_when_it_does(tmp_path, gone, caplog):
    files = KeptFiles(tmp_path / "kept", ".kept", 4)
    files.write("one", b"data")
    assert (files.read("one"), files.is_empty) == (b"data", False)
    back = gone()
    files._asker.seconds = 0.2
    begun = time.monotonic()
    for _ in range(50):
        assert files.read("one") is None
        files.write("two", b"data")
        files.write("three", b"data")
    assert time.monotonic() - begun < 30.0, "what does not answer is asked once"
    assert "nothing came back" in caplog.text
    back.set()
    files._asker.seconds = 3.0
    end = time.monotonic() + 60
    while files.read("two") != b"later" and time.monotonic() < end:
        files.write("two", b"later")  # not while the earlier write has not ended
        time.sleep(0.01)
    assert (files.read("one"), files.read("two")) == (b"data", b"later")

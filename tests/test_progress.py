"""What a terminal shows while something goes on for long."""

import os
import pty
import select
import termios
import time

import pytest

from zwatch.progress import Progress


class Terminal:
    """A terminal of its own."""

    def __init__(self):
        self._screen, ours = pty.openpty()
        termios.tcsetwinsize(ours, (24, 100))
        self.stream = os.fdopen(ours, "w")
        self._shown = ""

    def shows(self, text: str) -> bool:
        """Wait until `text` was shown, for a minute at most; what was shown before the last call does not count."""
        ends = time.monotonic() + 60
        while time.monotonic() < ends:
            _, found, rest = self._shown.partition(text)
            if found:
                self._shown = rest
                return True
            if select.select([self._screen], [], [], 1)[0]:
                self._shown += os.read(self._screen, 2**16).decode()
        return False

    def close(self):
        self.stream.close()
        os.close(self._screen)


@pytest.fixture
def terminal():
    terminal = Terminal()
    yield terminal
    terminal.close()


def test_time_passes_on_the_terminal_while_a_step_takes_long(terminal):
    with Progress("checking", stream=terminal.stream) as progress:
        progress.step("opening the device")
        assert terminal.shows("opening the device [00:01]")
        assert terminal.shows("opening the device [00:02]")


def test_a_bar_counts_bytes_and_then_names_what_is_left_to_do(terminal):
    with Progress("current", stream=terminal.stream) as progress:
        progress.update(0, 200, "v2 LOADING")
        assert terminal.shows("v2 LOADING [")
        progress.update(50, 200, "v2 LOADING")
        assert terminal.shows(" 25%|")
        progress.update(200, 200, "v2 WARMING")
        assert terminal.shows("v2 WARMING [")


def test_bytes_are_added_up_and_after_the_last_one_the_bar_ends(terminal):
    with Progress("sealing", 200, stream=terminal.stream) as progress:
        progress.advance("vae/x", 100)
        assert terminal.shows(" 50%|")
        progress.advance("vae/y", 50)
        assert terminal.shows(" 75%|")
        progress.advance("vae/y", 50)
        assert terminal.shows("finishing [")


def test_without_a_terminal_nothing_is_shown(capfd):
    with Progress("sealing", 200) as progress:
        progress.advance("vae/x", 100)
        progress.step("fsync")
    assert capfd.readouterr().err == ""


def test_other_things_than_bytes_are_counted_by_the_piece(terminal):
    with Progress("comparing", 3, unit="pairs", stream=terminal.stream) as progress:
        assert terminal.shows("comparing: 0 of 3 |")
        progress.advance("a cat", 1)
        assert terminal.shows("comparing: 1 of 3 |")
        assert terminal.shows("a cat")
        progress.advance("a dog", 2)
        assert terminal.shows("finishing [")

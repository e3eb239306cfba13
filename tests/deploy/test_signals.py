"""Signals end a command in order; none is lost, and a few writes are never parted."""

import signal
import sys
import threading
import weakref

import pytest

from zwatch.deploy.signals import Ending
from zwatch.errors import Ended

NUMBERS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])


def send(number):
    signal.raise_signal(number)


def send_in_a_callback(number):
    """Send a signal while the interpreter runs a callback, which drops what a handler raises."""

    class Thing:
        pass

    thing = Thing()
    reference = weakref.ref(thing, lambda _: send(number))
    del thing
    assert reference() is None


def dropped(monkeypatch):
    """Return a list that gets the exceptions that the interpreter drops."""
    found = []
    monkeypatch.setattr(sys, "unraisablehook", lambda one: found.append(one.exc_type))
    return found


@NUMBERS
def test_each_ends_the_command_with_its_status(number):
    ending = Ending()
    with pytest.raises(Ended) as ended:
        send(number)
    assert ended.value.status == 128 + number
    ending.close()


@NUMBERS
def test_one_that_the_interpreter_drops_ends_it_at_the_next_check(number, monkeypatch):
    ending, lost = Ending(), dropped(monkeypatch)
    send_in_a_callback(number)
    assert lost == [Ended]
    for again in (ending.check, ending.put_off, ending.go_on):
        with pytest.raises(Ended) as ended:
            again()
        assert ended.value.status == 128 + number


@NUMBERS
def test_those_that_wait_end_it_afterwards_the_first_with_its_status(number):
    ending, reached = Ending(), []

    def write():
        with ending.uninterrupted():
            send(number)
            send(signal.SIGINT)
            ending.check()
            reached.append("the end of the block")

    with pytest.raises(Ended) as ended:
        write()
    assert reached == ["the end of the block"]
    assert ended.value.status == 128 + number


def test_put_off_for_ever_nothing_ends_it():
    ending = Ending()
    ending.put_off()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        send(number)
    ending.check()


def test_what_others_handle_or_ignore_stays_theirs():
    came = []
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    ending = Ending()
    send(signal.SIGHUP)
    send(signal.SIGTERM)
    ending.check()
    assert came == [signal.SIGTERM]


def test_the_signals_of_a_command_that_ended_are_the_next_ones():
    first = Ending()
    first.put_off()
    second = Ending()
    with pytest.raises(Ended):
        send(signal.SIGTERM)
    first.close()
    with pytest.raises(Ended):
        second.check()


def test_closed_it_leaves_the_handlers_as_they_were():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    ending = Ending()
    assert signal.getsignal(signal.SIGTERM) != before[1]
    ending.close()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_thread_that_gets_no_signals_may_have_one():
    endings = []
    thread = threading.Thread(target=lambda: endings.append(Ending()))
    thread.start()
    thread.join()
    with endings[0].uninterrupted():
        endings[0].check()

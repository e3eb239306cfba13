"""Errors that are translated into other errors.

The ring that a generator makes here holds what it held from CPython 3.12 on only; tests/engine/full_card.py meets it.
"""

import gc
import weakref

import pytest

from zwatch.errors import Translating


def only_key_errors(error):
    return None if isinstance(error, KeyError) else KeyError(str(error))


@pytest.mark.parametrize("raised", [KeyError("a"), ValueError("a")], ids=["as it is", "as another"])
def test_memory_of_a_failed_call_is_freed_immediately(raised):
    class Buffer:
        pass

    held = []

    def load():
        buffer = Buffer()
        held.append(weakref.ref(buffer))
        error = type(raised)(*raised.args)
        try:
            raise error
        finally:
            del error

    def attempt():
        with Translating(only_key_errors):
            load()

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(KeyError, match="a") as seen:
            attempt()
        del seen
        assert held[0]() is None
    finally:
        gc.enable()


def test_no_error_and_an_interrupt_are_left_unchanged():
    with Translating(only_key_errors):
        pass
    with pytest.raises(KeyboardInterrupt), Translating(only_key_errors):
        raise KeyboardInterrupt

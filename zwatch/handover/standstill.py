"""A process of a handover that stands still: stopped, or in a call that does not return. The other one ends it and goes on.

It holds what can only be used by one: before the exchange is decided the sockets of which the other one accepts nothing, after it
jobs and the memory of the device. That it does nothing when it wakes up is only certain once it has ended.
"""

import asyncio
import logging
import os
import signal

_log = logging.getLogger(__name__)

_END_SECONDS = 5.0


async def end_process(pid: int, what: str) -> bool:
    """End a process that stands still by SIGKILL, and return whether it has ended. The log names `what` it is."""
    try:
        process = os.pidfd_open(pid)
    except OSError as error:  # in a container of its own it has no number here
        _log.error("%s stands still, and cannot be ended from here: %s", what, error.strerror)
        return False
    try:
        _log.error("%s, process %d, stands still: it is ended by SIGKILL", what, pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGKILL)
        except ProcessLookupError:
            return True
        except OSError as error:
            _log.error("process %d cannot be ended: %s", pid, error.strerror)
            return False
        return await has_ended(process, _END_SECONDS)
    finally:
        os.close(process)


async def has_ended(process: int, seconds: float) -> bool:
    """Return whether a process, given by a descriptor of it, ends within some seconds."""
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    process = os.dup(process)  # the caller may close its own meanwhile
    loop.add_reader(process, ended.set)
    try:
        async with asyncio.timeout(seconds):
            await ended.wait()
    except TimeoutError:
        return False
    finally:
        loop.remove_reader(process)
        os.close(process)
    return True

"""Whichever system call of a deploy fails, once or from then on: what served serves on with the same pictures, the status says
why, nothing is left behind, and the same deploy works afterwards. A real service and its real calls; see failing_calls.c.

`make chaos` (ZWATCH_LONG=1) fails every call, else a sample fails.
"""

import errno
import os
import random
import shutil
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.chaos.calls import FILES, FOR_EVER, SHORT, Call, FailingCalls, name_of
from tests.chaos.driver import LONG, ByCall, ByStray, Chaos, Fault, QuickServer, Reload, Rollback, Way
from tests.chaos.versions import VERIFYING, changed_byte, files

MOST = 2000
"""More calls than any deploy makes."""


@dataclass(frozen=True)
class Series:
    """Faults of one kind: the first call, the one `short` later …, every `long`-th in the long form."""

    way: Way
    calls: tuple[Call, ...]
    error: int
    length: int
    short: int
    long: int = 1
    least: int = 2**16

    def __str__(self) -> str:
        kind = self.calls[0].name.lower() if len(self.calls) == 1 else "any"
        times = {1: "once", FOR_EVER: "for-ever"}.get(self.length, f"{self.length}-times")
        return f"{self.way.name}-{kind}-{name_of(self.error)}-{times}"

    def faults(self):
        """Return the faults in order; the last ones may be beyond the last call."""
        step = self.long if LONG else self.short
        for first in range(1 if LONG or step == MOST else step // 2 + 1, MOST, step):
            yield Fault(self.calls, self.error, first, self.length, self.least)


link, stray, call, rollback, reload = Way(), ByStray(), ByCall(), Rollback(), Reload()
SERIES = [
    Series(link, FILES, errno.EIO, 1, 185),
    Series(link, FILES, errno.EIO, FOR_EVER, 379, 3),
    Series(link, (Call.OPEN,), errno.EMFILE, 1, 43),
    Series(link, (Call.OPEN,), errno.EMFILE, FOR_EVER, 47, 3),
    Series(link, (Call.OPEN,), errno.EACCES, 1, 51),
    Series(link, (Call.OPEN,), errno.EINTR, 3, 49),
    Series(link, (Call.DUP,), errno.EMFILE, 1, 31),
    Series(link, (Call.STAT,), errno.EACCES, 1, 121),
    Series(link, (Call.STAT,), errno.ENOMEM, 1, 113, 2),
    Series(link, (Call.STAT,), errno.EINTR, 1, 131, 2),
    Series(link, (Call.READLINK,), errno.ENOMEM, 1, 25),
    Series(link, (Call.READ,), SHORT, 1, 27),
    Series(link, (Call.READ,), SHORT, FOR_EVER, MOST, 9),
    Series(link, (Call.READ,), errno.EINTR, 3, 27),
    Series(link, (Call.GETDENTS,), errno.ENOMEM, 1, 81, 2),
    Series(link, (Call.FSYNC,), errno.ENOSPC, 1, 3),
    Series(link, (Call.WRITE,), errno.ENOSPC, 1, 5),
    Series(link, (Call.WRITE,), errno.ENOSPC, FOR_EVER, 5, 2),
    Series(link, (Call.WRITE,), SHORT, 1, 5),
    Series(link, (Call.RENAME,), errno.ENOSPC, 1, 3),
    Series(link, (Call.CLOSE,), errno.EIO, FOR_EVER, MOST, 9),
    Series(link, (Call.ALLOC,), errno.ENOMEM, 1, 41),
    Series(link, (Call.ALLOC,), errno.ENOMEM, FOR_EVER, 2, 1, 300_000),
    Series(link, (Call.THREAD,), errno.EAGAIN, 1, 1),
    Series(link, (Call.THREAD,), errno.EAGAIN, FOR_EVER, 1),
    Series(link, (Call.WATCH,), errno.ENOSPC, 1, 1),
    Series(stray, FILES, errno.EIO, 1, 231),
    Series(stray, FILES, errno.EIO, FOR_EVER, 401, 7),
    Series(stray, (Call.SYMLINK, Call.RENAME, Call.UNLINK), errno.ENOSPC, 1, 2),
    Series(stray, (Call.SYMLINK, Call.RENAME, Call.UNLINK), errno.EACCES, FOR_EVER, MOST),
    Series(call, FILES, errno.EIO, 1, 241, 2),
    Series(call, FILES, errno.EIO, FOR_EVER, 301, 17),
    Series(call, (Call.SYMLINK, Call.RENAME, Call.UNLINK, Call.FSYNC), errno.ENOSPC, 1, 3),
    Series(rollback, FILES, errno.EIO, 1, 121, 1),
    Series(rollback, FILES, errno.EIO, FOR_EVER, 157, 11),
    Series(reload, FILES, errno.EIO, 1, 241, 2),
    Series(reload, FILES, errno.EIO, FOR_EVER, 347, 17),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chaos(failing_library, three_versions, tmp_path_factory):
    """A service whose calls can be made to fail."""
    folder = tmp_path_factory.mktemp("chaos")
    models, state = folder / "models", folder / "state"
    shutil.copytree(three_versions, models)
    (models / "current").symlink_to("v1")
    calls = FailingCalls(failing_library, folder / "control", models, state)
    async with QuickServer(models, state, calls) as server:
        await server.serves("v1")
        chaos = Chaos(server, calls)
        await chaos.begin()
        yield chaos
        print(f"\nsystem calls: {chaos.figures}")


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("series", SERIES, ids=str)
async def test_whichever_call_fails_the_old_version_serves_and_the_same_deploy_works_afterwards(chaos, series):
    number = 0
    for fault in series.faults():
        if not await chaos.case(series.way, fault):
            break
        number += 1
    assert number or series.calls == (Call.THREAD,), "no call failed: the series tests nothing"
    assert not [name for name in os.listdir(chaos.models) if name not in ("v1", "v2", "v3", "current")]


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
async def test_a_version_of_which_a_byte_was_changed_never_draws_and_is_deployed_when_it_is_repaired(chaos):
    dice = random.Random(7)
    for number in range(120 if LONG else 5):
        old, new = chaos.serving, chaos.next
        names = files(chaos.models / new)
        path = names[number * 7 % len(names)]
        file = chaos.models / new / path
        position = dice.randrange(file.stat().st_size)
        with changed_byte(file, position, 1 << dice.randrange(8)):
            chaos.link(new)

            async def rejected(new=new):
                attempt = (await chaos.server.status())["aliases"]["current"]["attempt"]
                return attempt if attempt["version"] == new and attempt["state"] == "REJECTED" else None

            attempt = await chaos.server.until(rejected, f"{path} with another byte {position} is rejected")
            assert attempt["code"] in VERIFYING, attempt
            await chaos.draw(old)
        await chaos.becomes(new)
        await chaos.draw(new)
        await chaos.settle(new)


STARTS = [
    Series(link, FILES, errno.EIO, 1, 1, 29),
    Series(link, FILES, errno.EIO, FOR_EVER, 1, 157),
    Series(link, (Call.OPEN, Call.DUP), errno.EMFILE, 1, 1, 23),
    Series(link, (Call.MMAP, Call.ALLOC), errno.ENOMEM, 1, 1, 41, 2**20),
    Series(link, (Call.WATCH,), errno.ENOSPC, FOR_EVER, 1, 1),
]


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("series", STARTS if LONG else STARTS[:1], ids=str)
async def test_whichever_call_of_a_start_fails_it_says_why_and_serves_by_itself_or_at_the_next_start(chaos, series):
    await chaos.becomes(chaos.serving)
    for fault in series.faults() if LONG else [Fault(FILES, errno.EIO, 100)]:
        if not await chaos.start_again(fault):
            break

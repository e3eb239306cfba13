"""Reads that fail on a real file system, at any file of a version: an error that passes, and no word of missing or changed files."""

import errno
import os
from itertools import product

import pytest

from tests.rollout.conftest import TRANSFORMER, quick_retries

LONG = os.environ.get("ZWATCH_LONG") == "1"
FILES = [TRANSFORMER, "text_encoder/model.safetensors", "vae/config.json", "tokenizer/tokenizer.json", "BLAKE3SUMS"]
CODES = [errno.EIO, errno.ENOTCONN, errno.ESTALE]
CASES = list(product(FILES, CODES)) if LONG else list(zip(FILES, [*CODES, *CODES], strict=False))


@quick_retries
@pytest.mark.parametrize(("path", "code"), CASES)
async def test_a_version_whose_files_cannot_be_read_is_tried_again_until_they_can(service, hanging_mount, path, code):
    mount = hanging_mount(service.root / "v2")
    mount.fails = (path, code)
    service.link("v2")
    if path == "BLAKE3SUMS":  # what the link asks for is not known: no attempt

        def told():
            fault = service.supervisor.seen.faults.get("current")
            return fault is not None and fault.code == "unreadable" and os.strerror(code) in fault.message

    else:

        def told():
            [last, *_] = service.supervisor.attempts
            rejection = last.rejection
            return rejection is not None and rejection.code == "io_error" and os.strerror(code) in str(rejection)

    await service.until(told)
    assert service.serves() == "v1"
    assert {found for version, _, found in service.attempts() if version == "v2"} <= {"io_error", None}
    mount.fails = None
    await service.until_serves("v2")

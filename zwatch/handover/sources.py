"""The images that waiting jobs change, across a handover: their pixels in anonymous files, whose descriptors go with the jobs."""

import os
from collections.abc import Sequence
from typing import Any

from PIL import Image

from zwatch.generation.job import Job
from zwatch.generation.sources import Source


def about_source(job: Job) -> dict[str, Any] | None:
    """Return what a job's image is, without its pixels; None if it changes none."""
    if job.source_digest is None:
        return None
    size = None if job.source is None else list(job.source.picture.size)
    return {"digest": job.source_digest, "mask": job.has_mask, "size": size}


def source_file(job: Job) -> int | None:
    """Return a descriptor of a file with the pixels of a job's image and its mask, which the caller closes; None if nobody will need
    them: only a job that was not ended, and whose client does not wait, is ever drawn again.

    Raises:
        OSError: there is no memory for it.
    """
    if job.source is None or job.attended or job.state.is_final:
        return None
    fd = os.memfd_create("source", os.MFD_CLOEXEC)
    try:
        for picture in (job.source.picture, job.source.mask):
            data = memoryview(b"" if picture is None else picture.tobytes())
            while data:
                data = data[os.write(fd, data) :]
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_source_file(about: dict[str, Any], fds: Sequence[int]) -> Source | None:
    """Return the image of a job from what `source_file` wrote; None if that did not come.

    Raises:
        KeyError, ValueError, TypeError, OSError: it is not that.
    """
    if not fds or about["size"] is None:
        return None
    width, height = (int(side) for side in about["size"])
    pixels = width * height
    with open(fds[0], "rb", closefd=False) as file:
        file.seek(0)
        picture = Image.frombytes("RGB", (width, height), file.read(3 * pixels))
        mask = Image.frombytes("L", (width, height), file.read(pixels)) if about["mask"] else None
    return Source(picture, mask, str(about["digest"]))

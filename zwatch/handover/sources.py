"""The images that waiting jobs change, or that guide them, across a handover: their pixels in anonymous files, whose descriptors go with the jobs."""

import os
from typing import Any, BinaryIO

from PIL import Image

from zwatch.generation.job import Job
from zwatch.generation.sources import Source


def about_source(job: Job) -> dict[str, Any] | None:
    """Return what a job's image is, without its pixels; None if it has none."""
    if (digest := job.source_digest or job.control_digest) is None:
        return None
    size = None if job.source is None else list(job.source.picture.size)
    mask = None if job.source is None or job.source.mask is None else list(job.source.mask.size)
    guides = job.control_digest is not None
    return {"digest": digest, "mask": job.has_mask, "size": size, "mask_size": mask, "guides": guides}


def needed_source(job: Job) -> Source | None:
    """Return a job's image if anybody will need it: only a job that was not ended, and whose client does not wait, is ever drawn again."""
    return None if job.attended or job.state.is_final else job.source


def source_file(source: Source) -> BinaryIO:
    """Return a file in memory with the pixels of an image and its mask, which the caller closes. To be called in a thread.

    Raises:
        OSError: there is no memory for it.
    """
    # Not a descriptor: this is closed with its last reference, if nobody waits for it any more.
    file = os.fdopen(os.memfd_create("source", os.MFD_CLOEXEC), "w+b")
    try:
        file.writelines(picture.tobytes() for picture in (source.picture, source.mask) if picture is not None)
        file.flush()
    except BaseException:
        file.close()
        raise
    return file


def read_source_file(about: dict[str, Any], file: BinaryIO) -> Source | None:
    """Return the image of a job from what `source_file` wrote, and close that; None if it has none. To be called in a thread.

    Raises:
        KeyError, ValueError, TypeError, OSError: it is not that.
    """
    if about["size"] is None:
        return None
    width, height = (int(side) for side in about["size"])
    across, down = (int(side) for side in about.get("mask_size") or about["size"])
    with file:
        file.seek(0)
        picture = Image.frombytes("RGB", (width, height), file.read(3 * width * height))
        mask = Image.frombytes("L", (across, down), file.read(across * down)) if about["mask"] else None
    return Source(picture, mask, str(about["digest"]), guides=bool(about.get("guides", False)))

"""How far a job is, as AUTOMATIC1111 tells it."""

import base64
from typing import Any

from zwatch.generation.job import Job

_BEGUN = 0.01
"""AUTOMATIC1111's least progress of what is not idle, by which clients tell the two apart."""


def progress_view(job: Job | None, count: int, *, with_image: bool) -> dict[str, Any]:
    """Return how far a job is, of `count` that run or wait; without one, what AUTOMATIC1111 says when it is idle.

    The image is the newest preview, a small JPEG file in base64.
    """
    image = job.preview if job is not None and with_image else None
    return {
        "progress": 0.0 if job is None else max(_BEGUN, job.step / job.steps),
        "eta_relative": 0.0 if job is None else round(job.remaining or 0.0, 3),
        "state": {
            "skipped": False,
            "interrupted": job is not None and job.is_cancelled,
            "stopping_generation": False,
            "job": "" if job is None else job.id,
            "job_count": 0 if job is None else max(1, count),
            "job_timestamp": "0" if job is None else f"{job.created:%Y%m%d%H%M%S}",
            "job_no": 0,
            "sampling_step": 0 if job is None else job.step,
            "sampling_steps": 0 if job is None else job.steps,
        },
        "current_image": None if image is None else base64.b64encode(image).decode(),
        "textinfo": None,
    }

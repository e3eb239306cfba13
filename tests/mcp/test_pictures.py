"""What clients take: the copies of pictures in one result stay below their limits."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from zwatch.mcp.pictures import contents


def noise(side):
    """Return a PNG that no format makes small."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(side).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.mark.parametrize(("count", "side"), [(1, 64), (1, 1024), (1, 2048), (4, 1024)])
def test_all_copies_of_one_result_fit_into_it(count, side):
    found = contents([noise(side)] * count)
    assert len(found) == count
    assert sum(len(one.data) for one in found) <= 700_000
    for one in found:
        with Image.open(io.BytesIO(base64.b64decode(one.data))) as image:
            assert (image.format, one.mime_type) == ("JPEG", "image/jpeg")
            assert max(image.size) <= 1024


def test_a_small_picture_keeps_its_size():
    with Image.open(io.BytesIO(base64.b64decode(contents([noise(64)])[0].data))) as image:
        assert image.size == (64, 64)

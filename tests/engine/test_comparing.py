"""Golden images at an engine: what is compared when, and what is remembered of it."""

import io
import itertools
import json
import math
import shutil
import time

import numpy as np
import pytest
import torch
from PIL import Image

from tests import goldens
from tests.deploy import goldens as files
from tests.deploy.factory import seal_as_it_is
from tests.engine.editing import build, edit_json, rejection_of
from tests.engine.test_proven import until_kept
from zwatch.deploy import golden
from zwatch.deploy.golden import Picture
from zwatch.engine import comparing, factory
from zwatch.engine.check import check_version
from zwatch.engine.factory import EngineFactory
from zwatch.engine.golden import decoded
from zwatch.engine.likeness import psnr
from zwatch.engine.parameters import Generation
from zwatch.engine.precision import Precision
from zwatch.errors import Abandoned, Rejection
from zwatch.shadow.control import LoadControl
from zwatch.shadow.device import Device


@pytest.fixture(scope="module")
def drawn(tiny_versions, tmp_path_factory):
    """A models root with v1, which has three golden images, and v2, which has none."""
    root = tmp_path_factory.mktemp("drawn") / "models"
    shutil.copytree(tiny_versions, root)
    goldens.add(root, "v1")
    return root


@pytest.fixture
def root(drawn, tmp_path):
    return shutil.copytree(drawn, tmp_path / "models")


def warmed(root, name="v1", control=None, **options):
    made = EngineFactory(Device("cpu"), **options)
    engine = build(made, root, name)
    made.warm(engine, control or LoadControl())
    return engine


def counts(engine):
    return engine.golden.checked, engine.golden.missed, len(engine.golden.pictures)


def test_a_version_draws_its_golden_images_again_and_says_how_long_that_took(root):
    control = LoadControl()
    assert counts(warmed(root, control=control)) == (3, 0, 3)
    assert control.phases["golden"] > 0
    assert counts(warmed(root, "v2")) == (0, 0, 0)


@pytest.mark.parametrize(
    "options", [{"exact": False}, {"precision": Precision("fp32", None)}, {"precision": Precision("fp16", None)}]
)
def test_another_rounding_and_another_dtype_pass_the_default_floors(root, options):
    assert counts(warmed(root, **options)) == (3, 0, 3)


@pytest.mark.parametrize("kind", ["fp8", "int8"])
def test_a_version_that_is_quantized_when_it_is_loaded_has_lower_floors(root, kind):
    edit_json(
        root / "v1/golden.json", lambda found: [one.update(min_psnr=100.0, min_ssim=1.0) for one in found["images"]]
    )
    goldens.seal(root / "v1")
    assert counts(warmed(root, precision=Precision("auto", kind))) == (3, 0, 3)
    goldens.change_vae(root / "v1")
    edit_json(root / "v1/vae/config.json", lambda config: config.update(scaling_factor=0.01))
    goldens.seal(root / "v1")
    code, reason = rejection_of(lambda: warmed(root, precision=Precision("auto", kind)))
    assert code == "golden_mismatch"
    assert f"the floors for weights that are quantized to {kind} when they are loaded" in reason


def change_shift(version):
    goldens.change_shift(version, 9.0)


@pytest.mark.parametrize("harm", [change_shift, goldens.change_vae])
def test_what_changes_the_pictures_is_rejected_with_the_figures(root, harm):
    harm(root / "v1")
    goldens.seal(root / "v1")
    code, reason = rejection_of(lambda: warmed(root))
    assert code == "golden_mismatch"
    assert reason.startswith('golden/1.png ("a cat wearing sunglasses", seed 42): PSNR is ')
    first = golden.parse((root / "v1/golden.json").read_bytes())[0]
    assert f"expected at least {first.min_psnr:g} dB and {first.min_ssim:g};" in reason


def test_nan_pixels_are_a_mismatch():
    picture = Picture(**files.PICTURE)
    fault = comparing.fault_of(Generation([], False, False, {}), np.zeros((64, 64, 3), np.uint8), picture, None)
    assert fault == 'golden/1.png ("a cat", seed 1): the image has NaN or infinite pixels'


def test_a_long_prompt_is_shortened_in_one_line():
    picture = Picture(**{**files.PICTURE, "prompt": "a\ncat " * 1000})
    found = Generation([Image.new("RGB", (64, 64), (9, 9, 9))], False, True, {})
    fault = comparing.fault_of(found, np.full((64, 64, 3), 200, np.uint8), picture, None)
    assert "\n" not in fault
    assert len(fault) < 250


# The time that it may take


def test_another_image_is_compared_if_it_fits_by_the_pace_so_far():
    assert comparing.fits(2.0, 10.0, 20.0, 6.0)
    assert not comparing.fits(2.0, 10.0, 20.1, 6.0)
    assert not comparing.fits(2.0, 10.0, 1.0, 0.0)


def test_one_image_is_compared_however_little_time_there_is(root, monkeypatch):
    monkeypatch.setattr(factory, "SECONDS", 0.0)
    engine = warmed(root)
    assert counts(engine) == (1, 0, 3)
    assert engine.golden.next.image == "golden/2.png"


def test_where_memory_is_short_for_one_more_image_all_are_left_until_nothing_else_is_drawn(root, monkeypatch):
    device = Device("cpu")
    made = EngineFactory(device)
    engine = build(made, root, "v1")
    monkeypatch.setattr(Device, "unused", property(lambda self: 2**20))
    made.warm(engine, LoadControl())
    assert counts(engine) == (0, 0, 3)
    device.request_peak = 2**40
    monkeypatch.setattr(Device, "unused", property(lambda self: 2**39))
    assert not comparing.has_room(engine, engine.golden.next, is_held=False)
    assert comparing.has_room(engine, engine.golden.next, is_held=True), "no request draws then"


def test_a_load_that_is_no_longer_wanted_does_not_compare_on(root):
    made, control, steps = EngineFactory(Device("cpu")), LoadControl(), itertools.count()
    engine = build(made, root, "v1")

    def check():
        if next(steps) == 3:
            control.abandon()
        LoadControl.check(control)

    control.check = check
    with pytest.raises(Abandoned):
        made.warm(engine, control)
    assert engine.golden.checked < 3


def test_zwatch_check_compares_all_of_them(root, monkeypatch):
    monkeypatch.setattr(factory, "SECONDS", 0.0)
    goldens.invert(root / "v1", "golden/3.png")
    goldens.seal(root / "v1")
    [problem], _ = check_version(root / "v1", "cpu", lambda *report: None)
    assert problem.startswith("golden_mismatch: golden/3.png")


# What is remembered


def test_a_version_that_was_checked_in_part_goes_on_at_the_next_start(root, tmp_path, monkeypatch):
    monkeypatch.setattr(factory, "SECONDS", 0.0)
    cache = tmp_path / "prepared"
    first = EngineFactory(Device("cpu"), cache)
    engine = build(first, root, "v1")
    first.warm(engine, LoadControl())
    kept = until_kept(tmp_path)
    assert json.loads(kept.read_bytes()[64:])["golden"] == 1
    later = EngineFactory(Device("cpu"), cache)
    again = build(later, root, "v1")
    assert later.is_proven(again)
    assert counts(again) == (1, 0, 3)
    again.golden.note("it is another image")
    later.note_golden(again)
    assert not later.is_proven(build(later, root, "v1")), "a miss is looked at again"


def test_a_warm_up_image_alone_does_not_prove_a_version_with_golden_images(root, tmp_path):
    made = EngineFactory(Device("cpu"), tmp_path / "prepared")
    engine = build(made, root, "v1")
    made.warm(engine, LoadControl())
    made._proven.note(engine.digest, engine.colours, 0)
    until_kept(tmp_path)
    end = time.monotonic() + 60
    while made._proven.find(engine.digest).golden and time.monotonic() < end:
        time.sleep(0.01)
    assert not made.is_proven(build(made, root, "v1"))


def test_another_way_to_draw_proves_nothing(root, tmp_path):
    made = EngineFactory(Device("cpu"), tmp_path / "prepared", exact=True)
    made.warm(build(made, root, "v1"), LoadControl())
    until_kept(tmp_path)
    assert EngineFactory(Device("cpu"), tmp_path / "prepared", exact=True).is_proven(build(made, root, "v1"))
    assert not EngineFactory(Device("cpu"), tmp_path / "prepared", exact=False).is_proven(build(made, root, "v1"))


# What is wrong with golden.json and its images


def test_a_bad_golden_json_is_rejected_before_weights_are_read(root):
    edit_json(root / "v1/golden.json", lambda found: found["images"][1].update(steps=0))
    seal_as_it_is(root / "v1")
    control = LoadControl()
    code, reason = rejection_of(lambda: build(EngineFactory(Device("cpu")), root, "v1", control))
    assert (code, reason.startswith("golden.json: images[1].steps: found 0")) == ("golden_invalid", True)
    assert control.bytes_done == 0


def test_an_image_that_is_larger_than_the_version_draws_is_rejected(root):
    edit_json(root / "v1/golden.json", lambda found: found["images"][0].update(width=2048))
    (root / "v1/golden/1.png").write_bytes(files.png(2048, 64))
    goldens.seal(root / "v1")
    code, reason = rejection_of(lambda: warmed(root))
    assert code == "golden_invalid"
    assert reason.startswith("golden.json: images[0].width: found 2048, expected at most ")


def noise():
    return np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)


def file_of(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


WHOLE = file_of(noise())


@pytest.mark.parametrize(
    "data",
    [
        WHOLE[:-30],
        WHOLE[:40],
        WHOLE[:2000] + bytes(len(WHOLE) - 2000),
        WHOLE.replace(b"IDAT", b"IDAX"),
    ],
    ids=["cut", "a header alone", "zeros", "no pixels"],
)
def test_an_image_that_cannot_be_decoded_is_rejected_with_its_path(data):
    with pytest.raises(Rejection, match=r"golden/1\.png: it cannot be decoded") as caught:
        decoded(Picture(**files.PICTURE), data)
    assert caught.value.code == "golden_invalid"


def test_an_image_is_decoded_as_it_is():
    assert psnr(decoded(Picture(**files.PICTURE), WHOLE), noise()) == math.inf


def test_the_noise_of_a_golden_image_is_that_of_the_processors_generator(root):
    engine = warmed(root, "v2")
    seen = []
    real = type(engine.pipeline).noise

    def noise(self, width, height, generator):
        seen.append(generator.device)
        return real(self, width, height, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(engine.pipeline), "noise", noise)
        engine.generate(comparing.parameters(Picture(**files.PICTURE)))
    assert seen == [torch.device("cpu")]

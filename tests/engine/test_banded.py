"""Decoding in bands, for want of memory: the picture that is decoded at once, within rounding."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.engine.editing import build, edit_json, parameters, seal_again
from zwatch.engine.decoding import MORE
from zwatch.engine.factory import EngineFactory
from zwatch.engine.networks import banded
from zwatch.engine.networks.autoencoder import Autoencoder, AutoencoderConfig
from zwatch.engine.parameters import InitialImage
from zwatch.shadow.device import CpuMemory, Device

CPU = torch.device("cpu")
SIZES = {"wide": (4, 7), "high": (9, 3)}


def made(**changes):
    """Return an autoencoder with random weights."""
    config = AutoencoderConfig(
        **{
            "block_out_channels": (8, 16, 16), "shift_factor": 0.0, "latent_channels": 4, "layers_per_block": 2,
            "norm_num_groups": 4, "use_quant_conv": False, "use_post_quant_conv": False, **changes,
        }
    )  # fmt: skip
    torch.manual_seed(0)
    network = Autoencoder(config)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return network.requires_grad_(False).eval()


def latents(size, dtype=torch.float32):
    return torch.randn((1, 4, *SIZES[size]), generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.fixture(params=[1, 8000, 2**30], ids=["bands of a row", "bands of some rows", "one band"])
def bands(request, monkeypatch):
    monkeypatch.setattr(banded, "BAND_BYTES", request.param)
    monkeypatch.setattr(banded, "QUERIES", 10)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("changes", [{}, {"use_post_quant_conv": True}, {"mid_block_add_attention": False}], ids=str)
def test_bands_give_the_pixels_that_are_decoded_at_once(bands, size, changes):
    network, given = made(**changes), latents(size)
    expected = network.decode(given)[0]
    found = banded.decode(network, given, CPU)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_in_bfloat16_they_differ_as_rounding_does(bands):
    network, given = made().bfloat16(), latents("wide", torch.bfloat16)
    expected = network.decode(given)[0]
    found = banded.decode(network, given, CPU)
    assert found.dtype is torch.bfloat16
    assert (found - expected).float().abs().max() < 0.05 * expected.float().abs().max()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("changes", [{}, {"use_quant_conv": True}, {"mid_block_add_attention": False}], ids=str)
def test_bands_give_the_latents_that_are_encoded_at_once(bands, size, changes):
    network = made(**changes)
    height, width = (4 * side for side in SIZES[size])
    given = torch.randn((1, 3, height, width), generator=torch.Generator().manual_seed(1))
    expected = network.encode(given)
    found = banded.encode(network, given, CPU)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_bands_of_one_picture_differ_in_its_pixels_if_rows_around_them_are_missing(monkeypatch):
    """The comparison above would notice it."""
    monkeypatch.setattr(banded, "BAND_BYTES", 1)
    network, given = made(), latents("high")
    expected = network.decode(given)[0]

    def alone(image, begin, end, function, scale=1):
        return function(image.band(begin, end))

    monkeypatch.setattr(banded._Image, "around", alone)
    assert not torch.allclose(banded.decode(network, given, CPU), expected, rtol=1e-2, atol=1e-2)


# --- when memory runs out


class ShortMemory:
    """Lets decoding at once fail from so many places of latents on, and in bands so many times."""

    def __init__(self, monkeypatch):
        self.places, self.failing_bands = 0, 0
        self.at_once, self.stores = [], []
        decode, in_bands = Autoencoder.decode, banded.decode

        def at_once(network, given, **options):
            self.at_once.append(given.shape[2] * given.shape[3])
            if self.at_once[-1] >= self.places:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return decode(network, given, **options)

        def bands(network, given, store):
            self.stores.append(store)
            if self.failing_bands:
                self.failing_bands -= 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            return in_bands(network, given, store)

        monkeypatch.setattr(Autoencoder, "decode", at_once)
        monkeypatch.setattr(banded, "decode", bands)


class Free(CpuMemory):
    """Memory of which a test says how much is free."""

    free = 2**40

    def unused(self):
        return self.free, 2**40


@pytest.fixture
def free():
    return Free()


@pytest.fixture
def engine(models, free):
    return build(EngineFactory(Device("cpu", memory=free)), models, "v1")


def pixels(engine, side=64):
    return np.asarray(engine.serve(parameters(width=side, height=side)).images[0]).astype(int)


def test_a_picture_without_the_memory_to_be_decoded_at_once_is_decoded_in_bands(engine, monkeypatch):
    expected, small = pixels(engine), pixels(engine, 32)
    memory = ShortMemory(monkeypatch)
    memory.places = 64
    found = pixels(engine)
    assert np.abs(found - expected).mean() < 1
    assert np.array_equal(pixels(engine), found)
    assert memory.at_once == [64]  # not tried again
    assert np.array_equal(pixels(engine, 32), small)
    assert memory.at_once == [64, 16]


def test_an_image_without_the_memory_to_be_encoded_at_once_is_encoded_in_bands(engine, monkeypatch):
    source = InitialImage(Image.new("RGB", (64, 64), (200, 30, 90)), None, 0.5, 0, "", False)
    wanted = parameters(source=source)
    expected = np.asarray(engine.serve(wanted).images[0]).astype(int)
    tried = []

    def short(network, pixels):
        tried.append(pixels.shape)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Autoencoder, "encode", short)
    found = [np.asarray(engine.serve(wanted).images[0]).astype(int) for _ in range(2)]
    assert np.abs(found[0] - expected).mean() < 1
    assert np.array_equal(*found)
    assert len(tried) == 1  # not tried again


def test_a_size_is_decoded_at_once_again_when_clearly_more_memory_is_free(engine, free, monkeypatch):
    expected = pixels(engine)
    free.free = 1000
    memory = ShortMemory(monkeypatch)
    memory.places = 64
    pixels(engine)
    assert memory.at_once == [64]
    memory.places = 65
    free.free = 1000 + MORE
    pixels(engine)
    assert (memory.at_once, len(memory.stores)) == ([64], 2), "not clearly more"
    free.free += 1
    assert np.array_equal(pixels(engine), expected)
    assert (memory.at_once, len(memory.stores)) == ([64, 64], 2)


def test_each_size_has_its_own_shortage(engine, free, monkeypatch):
    memory = ShortMemory(monkeypatch)
    free.free = 1000
    pixels(engine, 32)
    free.free = 1000 + 2 * MORE
    pixels(engine, 64)
    assert memory.at_once == [16, 64]
    pixels(engine, 64)
    assert memory.at_once == [16, 64]
    free.free = 1000
    for side in (32, 64):
        pixels(engine, side)
    assert memory.at_once == [16, 64]
    memory.places = 17
    free.free = 1001 + MORE
    pixels(engine, 32)
    assert memory.at_once == [16, 64, 16]


def test_what_a_warm_up_lacked_does_not_count_for_requests(engine, monkeypatch):
    expected = pixels(engine)
    memory = ShortMemory(monkeypatch)
    memory.places = 64
    engine.generate(parameters(width=64, height=64))
    assert (memory.at_once, len(memory.stores)) == ([64], 1)
    memory.places = 65
    assert np.array_equal(pixels(engine), expected)
    assert (memory.at_once, len(memory.stores)) == ([64, 64], 1)


def test_a_request_for_which_graphs_were_released_is_decoded_at_once_again(engine, monkeypatch):
    expected = pixels(engine)
    memory = ShortMemory(monkeypatch)
    memory.failing_bands = 2  # on the device, and with the rest in host memory

    def give_room():
        memory.places = 65
        return True

    monkeypatch.setattr(engine._acceleration, "give_room", give_room)
    assert np.array_equal(pixels(engine), expected)
    assert memory.at_once == [64, 64]


def test_what_is_kept_for_the_next_version_is_given_first(engine, monkeypatch):
    expected = pixels(engine)
    memory = ShortMemory(monkeypatch)

    def give_room():
        memory.places = 65
        return 1

    monkeypatch.setattr(engine.device, "give_room", give_room)
    assert np.array_equal(pixels(engine), expected)
    assert memory.stores == []


def test_bands_without_memory_are_held_in_host_memory(engine, monkeypatch):
    expected = pixels(engine)
    memory = ShortMemory(monkeypatch)
    memory.failing_bands = 1
    for _ in range(2):
        assert np.abs(pixels(engine) - expected).mean() < 1
    assert memory.stores == [CPU, CPU, CPU]


def test_without_memory_in_any_way_the_request_fails(engine, monkeypatch):
    memory = ShortMemory(monkeypatch)
    memory.failing_bands = 100
    with pytest.raises(torch.OutOfMemoryError):
        pixels(engine)


def test_another_error_is_none_of_memory(engine, monkeypatch):
    def broken(network, given, **options):
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(Autoencoder, "decode", broken)
    with pytest.raises(RuntimeError, match="illegal"):
        pixels(engine)


def test_the_librarys_autoencoder_decodes_in_its_tiles(models, monkeypatch):
    from diffusers import AutoencoderKL

    edit_json(models / "v1" / "vae" / "config.json", lambda config: config.update(a_new_field=1))
    seal_again(models / "v1")
    engine = build(EngineFactory(Device("cpu")), models, "v1")
    expected = pixels(engine)

    def full(*given, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(AutoencoderKL, "decode", full)
    assert np.abs(pixels(engine) - expected).mean() < 20  # tiles approximate


@pytest.mark.gpu
def test_on_a_gpu_each_way_takes_less_memory_than_the_one_before():
    config = AutoencoderConfig(
        block_out_channels=(128, 256, 512, 512), shift_factor=0.1, latent_channels=16, layers_per_block=2,
        use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    torch.manual_seed(0)
    network = Autoencoder(config).to("cuda", torch.bfloat16).requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=0.02)
        else:
            torch.nn.init.constant_(parameter, float(name.endswith("weight")))
    given = torch.randn((1, 16, 128, 128), device="cuda").bfloat16()
    ways = [
        lambda: network.decode(given)[0],
        lambda: banded.decode(network, given, given.device),
        lambda: banded.decode(network, given, CPU),
    ]
    found, peaks = [], []
    with torch.inference_mode():
        for way in ways:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            found.append(way().float())
            peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[0] > peaks[1] > peaks[2]
    for other in found[1:]:
        assert ((other - found[0]) ** 2).mean() < 1e-3 * (found[0] ** 2).mean()

"""FileBuffer: a file's bytes on a device, the tensors in them, and hashes that notice every change."""

import pytest
import safetensors.torch
import torch
from blake3 import blake3

from tests.shadow.conftest import safetensors_bytes, weights_bytes
from zwatch.deploy.header import ITEM_BITS
from zwatch.shadow.buffers import KERNEL_ALIGNMENT, TORCH_DTYPES, FileBuffer, Footprint
from zwatch.shadow.device import Device

ROWS, COLUMNS = 3, 5


def random_bytes(dtype, elements):
    size = elements * ITEM_BITS[dtype] // 8
    if dtype == "BOOL":
        return bytes(index % 2 for index in range(size))
    return (
        torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
        .numpy()
        .tobytes()
    )


def every_dtype():
    return {f"t.{dtype}": (dtype, (ROWS, COLUMNS), random_bytes(dtype, ROWS * COLUMNS)) for dtype in ITEM_BITS}


def assert_equal_bits(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert tensor.dtype == expected[name].dtype, name
        assert tensor.shape == expected[name].shape, name
        bits, expected_bits = (t.contiguous().reshape(-1).view(torch.uint8) for t in (tensor, expected[name]))
        assert torch.equal(bits, expected_bits), name


def shares_storage(tensor, owner):
    return tensor.untyped_storage().data_ptr() == owner.untyped_storage().data_ptr()


def test_every_dtype_of_the_format_has_its_torch_dtype_of_the_same_size():
    assert {name: dtype.itemsize * 8 for name, dtype in TORCH_DTYPES.items()} == ITEM_BITS


@pytest.mark.parametrize("header_length", range(1600, 1616), ids="header{}".format)
def test_views_equal_what_safetensors_loads_wherever_the_data_starts(folder, device, header_length):
    name = folder.write("all.safetensors", safetensors_bytes(every_dtype(), header_length))
    assert_equal_bits(folder.load(name, device).tensors(), safetensors.torch.load_file(folder.path / name))


def test_views_equal_what_safetensors_load_file_gives(folder, device):
    generator = torch.Generator().manual_seed(1)
    tensors = {
        f"t.{number}": torch.randn(number + 1, 7, generator=generator).to(dtype)
        for number, dtype in enumerate((torch.float64, torch.float32, torch.bfloat16, torch.float16))
    }
    safetensors.torch.save_file(tensors | {"scalar": torch.tensor(3)}, folder.path / "saved.safetensors")
    found = folder.load("saved.safetensors", device).tensors()
    assert_equal_bits(found, safetensors.torch.load_file(folder.path / "saved.safetensors"))


def test_scalars_and_empty_tensors_are_views_too(folder, device):
    entries = {
        "scalar": ("F32", (), b"\0\0\x80?"),
        "nothing": ("BF16", (0, 4), b""),
        "odd": ("U8", (1,), b"x"),
        "off": ("F32", (0,), b""),
        "last": ("I64", (1,), bytes(range(8))),
    }
    name = folder.write("few.safetensors", safetensors_bytes(entries))
    assert_equal_bits(folder.load(name, device).tensors(), safetensors.torch.load_file(folder.path / name))


@pytest.fixture
def mixed(folder, device):
    """A file with tensors on and off the kernels' alignment: `on` at 0, `off` at 66, `on.again` at 96."""
    entries = {
        "on": ("BF16", (33,), random_bytes("BF16", 33)),
        "off": ("BF16", (15,), random_bytes("BF16", 15)),
        "on.again": ("F32", (4,), random_bytes("F32", 4)),
    }
    return folder.load(folder.write("mixed.safetensors", safetensors_bytes(entries)), device)


def test_every_view_starts_where_vectorised_kernels_can_load(mixed):
    assert {name: view.data_ptr() % KERNEL_ALIGNMENT for name, view in mixed.tensors().items()} == {
        "on": 0, "off": 0, "on.again": 0,
    }  # fmt: skip


def test_aligned_tensors_share_the_buffers_storage_and_only_the_others_are_copied(mixed):
    views = mixed.tensors()
    assert {name for name, view in views.items() if shares_storage(view, mixed.data)} == {"on", "on.again"}
    assert shares_storage(views["off"], mixed.derived)


def test_a_file_of_aligned_tensors_gets_no_copy_at_all(folder, device):
    entries = {f"t{number}": ("F32", (8,), random_bytes("F32", 8)) for number in range(3)}
    buffer = folder.load(folder.write("aligned.safetensors", safetensors_bytes(entries)), device)
    assert all(shares_storage(view, buffer.data) for view in buffer.tensors().values())
    assert buffer.derived is None


def test_asking_for_the_tensors_twice_copies_once(mixed):
    first, second = mixed.tensors(), mixed.tensors()
    assert {name: view.data_ptr() for name, view in first.items()} == {
        name: view.data_ptr() for name, view in second.items()
    }


def test_the_hashed_bytes_are_the_files_bytes(folder, mixed):
    data = (folder.path / "mixed.safetensors").read_bytes()
    assert bytes(mixed.data.numpy()) == data
    assert mixed.begin_hash().hexdigest() == mixed.digest == blake3(data).hexdigest()


def test_an_unchanged_buffer_passes_the_check(mixed):
    mixed.tensors()
    assert mixed.begin_check()() is None


@pytest.mark.parametrize("position", [0, 8, 300, -1], ids=["length", "header", "tensor", "last"])
def test_a_flipped_bit_in_the_files_bytes_is_found_and_the_path_named(mixed, position):
    mixed.tensors()
    mixed.data[position] ^= 1
    problem = mixed.begin_check()()
    assert problem is not None
    assert problem.startswith("mixed.safetensors: ")
    assert mixed.digest in problem


@pytest.mark.parametrize("position", [0, 29, -1], ids=["first", "last", "padding"])
def test_a_flipped_bit_in_an_aligned_copy_is_found_and_the_path_named(mixed, position):
    mixed.tensors()
    mixed.derived[position] ^= 1
    assert mixed.begin_check()() == "mixed.safetensors: the aligned copy of its tensors on the device has changed"


def test_writing_through_a_tensor_is_found(mixed):
    mixed.tensors()["off"][3] = 1.0
    assert mixed.begin_check()() is not None


@pytest.mark.parametrize("header_length", [1600, 1601, 1607, 1850])
def test_the_footprint_is_what_is_really_allocated(folder, device, header_length):
    name = folder.write("all.safetensors", safetensors_bytes(every_dtype(), header_length))
    footprint = Footprint.of(folder.plan(name).headers[name])
    buffer = folder.load(name, device)
    assert weights_bytes(device) == footprint.file
    buffer.tensors()
    assert weights_bytes(device) == buffer.nbytes == footprint.total


def test_memory_counts_as_free_again_when_a_buffer_is_gone(folder, device, mixed):
    mixed_bytes = weights_bytes(device)
    other = FileBuffer("mixed.safetensors", mixed.header, device)
    assert weights_bytes(device) == 2 * mixed_bytes
    del other
    assert weights_bytes(device) == mixed_bytes


@pytest.mark.gpu
class TestOnCuda:
    @pytest.fixture
    def device(self):
        return Device("cuda")

    @pytest.mark.parametrize("header_length", [1600, 1603])
    def test_the_buffer_holds_the_files_bytes_and_their_hash(self, folder, device, header_length):
        data = safetensors_bytes(every_dtype(), header_length)
        buffer = folder.load(folder.write("all.safetensors", data), device)
        assert buffer.data.is_cuda
        assert bytes(buffer.data.cpu().numpy()) == data
        assert buffer.digest == blake3(data).hexdigest()

    def test_misaligned_tensors_equal_what_safetensors_loads_and_are_aligned(self, folder, device):
        name = folder.write("all.safetensors", safetensors_bytes(every_dtype(), 1603))
        views = folder.load(name, device).tensors()
        expected = safetensors.torch.load_file(folder.path / name)
        assert_equal_bits({name: view.cpu() for name, view in views.items()}, expected)
        assert {view.data_ptr() % KERNEL_ALIGNMENT for view in views.values()} == {0}

    def test_a_flipped_bit_is_found_in_the_files_bytes_and_in_a_copy(self, folder, device):
        buffer = folder.load(folder.write("all.safetensors", safetensors_bytes(every_dtype(), 1603)), device)
        buffer.tensors()
        assert buffer.begin_check()() is None
        buffer.derived[0] ^= 1
        assert "aligned copy" in buffer.begin_check()()
        buffer.data[-1] ^= 1
        assert buffer.digest in buffer.begin_check()()

    def test_a_file_of_several_chunks_lands_whole(self, folder, device):
        data = safetensors_bytes({"t": ("U8", (50_000_007,), random_bytes("U8", 50_000_007))})
        buffer = folder.load(folder.write("t.safetensors", data), device)
        assert bytes(buffer.data.cpu().numpy()) == data

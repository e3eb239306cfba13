"""Load: only verified bytes are returned, and a failed load holds no memory."""

import dataclasses
import errno
import os
import shutil
import threading
import time

import pytest
from blake3 import blake3

from tests.shadow.conftest import rejection_of, safetensors_bytes, weights_bytes
from zwatch.deploy import seal
from zwatch.deploy.look import open_version
from zwatch.deploy.resolving import FileStamp
from zwatch.errors import Abandoned, Rejection
from zwatch.shadow import device as device_module
from zwatch.shadow import reader
from zwatch.shadow.device import Device
from zwatch.shadow.loader import (
    MAX_SMALL_FILE,
    Candidate,
    LoadControl,
    Lot,
    load_small,
    load_weights,
    plan,
)
from zwatch.shadow.loader import load as load_candidate
from zwatch.shadow.verified_files import KEPT_DIGESTS, DiskStamp, VerifiedFiles

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"


def planned(models, name="v1"):
    directory = open_version(models, name)
    return directory, plan(directory, seal.read_seal(directory.fd).digest)


def load(directory, found, device, paths=None, control=None):
    return load_weights(
        directory, found, paths or list(found.headers), device, control or LoadControl(), VerifiedFiles()
    )


def flip_byte(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def reseal(version, change):
    """Rewrite the seal's lines by `change`, which gets and returns {path: hash}."""
    files = change(dict(seal.parse_seal((version / seal.SEAL_NAME).read_bytes()).files))
    (version / seal.SEAL_NAME).write_bytes(seal.format_seal(files))


# --- plan


def test_a_plan_has_every_sealed_file_and_every_weight_header(models):
    _, found = planned(models)
    assert found.version == "v1"
    assert found.seal.digest == blake3((models / "v1" / seal.SEAL_NAME).read_bytes()).hexdigest()
    assert set(found.headers) == {TRANSFORMER, VAE, TEXT_ENCODER}
    assert found.headers[TRANSFORMER].version == "v1"
    assert found.stamps.keys() == found.seal.files.keys()
    assert None not in found.stamps.values()


def symlinked(version):
    shutil.move(version / VAE, version / "vae/elsewhere")
    (version / VAE).symlink_to("elsewhere")


def fifo(version):
    (version / VAE).unlink()
    os.mkfifo(version / VAE)


BROKEN = {
    "no seal": (lambda v: (v / seal.SEAL_NAME).unlink(), "seal_missing", seal.SEAL_NAME),
    "empty seal": (lambda v: (v / seal.SEAL_NAME).write_bytes(b""), "seal_invalid", "empty"),
    "bad hex": (lambda v: (v / seal.SEAL_NAME).write_bytes(b"xyz  a\n"), "seal_invalid", "line 1"),
    "seal is a link": (
        lambda v: [shutil.move(v / seal.SEAL_NAME, v / "s"), (v / seal.SEAL_NAME).symlink_to("s")],
        "seal_invalid",
        seal.SEAL_NAME,
    ),
    "weights gone": (lambda v: (v / VAE).unlink(), "file_missing", VAE),
    "config gone": (lambda v: (v / "vae/config.json").unlink(), "file_missing", "vae/config.json"),
    "folder gone": (lambda v: shutil.rmtree(v / "vae"), "file_missing", "vae/"),
    "no transformer sealed": (
        lambda v: reseal(v, lambda files: {p: h for p, h in files.items() if p != TRANSFORMER}),
        "file_missing",
        "transformer/*.safetensors",
    ),
    "weights are a symlink": (symlinked, "file_not_regular", VAE),
    "weights are a FIFO": (fifo, "file_not_regular", VAE),
    "weights empty": (lambda v: (v / VAE).write_bytes(b""), "header_invalid", VAE),
    "weights no safetensors": (lambda v: (v / VAE).write_bytes(b"\x08" + bytes(99)), "header_invalid", VAE),
    "weights cut short": (lambda v: os.truncate(v / VAE, (v / VAE).stat().st_size - 1), "size_mismatch", VAE),
    "weights longer": (lambda v: (v / VAE).open("ab").write(b"x"), "size_mismatch", VAE),
    "another version's transformer": (
        lambda v: shutil.copy(v.parent / "v2" / TRANSFORMER, v / TRANSFORMER),
        "version_mismatch",
        "'v2'",
    ),
    "no version in the transformer": (
        lambda v: (v / TRANSFORMER).write_bytes(safetensors_bytes({"t": ("U8", (1,), b"x")})),
        "version_mismatch",
        "no version",
    ),
}


@pytest.mark.parametrize(("harm", "code", "names"), BROKEN.values(), ids=BROKEN.keys())
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_plan_of_a_broken_version_is_rejected_and_says_what_is_broken(models, harm, code, names):
    harm(models / "v1")
    directory = open_version(models, "v1")
    try:
        digest = blake3(seal.read_seal_bytes(directory.fd)).hexdigest()
    except Rejection:
        digest = None
    found_code, reason = rejection_of(lambda: plan(directory, digest))
    assert found_code == code
    assert names in reason


def test_a_seal_that_was_rewritten_since_the_look_is_rejected(models):
    directory = open_version(models, "v1")
    before = seal.read_seal(directory.fd).digest
    reseal(models / "v1", lambda files: {p: h for p, h in files.items() if p != "tokenizer/chat_template.jinja"})
    assert rejection_of(lambda: plan(directory, before))[0] == "seal_changed"


def test_a_seal_that_appeared_since_the_look_is_rejected_until_the_next_look(models):
    assert rejection_of(lambda: plan(open_version(models, "v1"), None))[0] == "seal_changed"


def test_a_planned_footprint_is_what_loading_and_viewing_takes(models, device):
    directory, found = planned(models)
    buffers = load(directory, found, device)
    views = [buffer.tensors() for buffer in buffers.values()]
    assert weights_bytes(device) == found.footprint(list(found.headers), {})
    assert sum(map(len, views)) == sum(len(header.tensors) for header in found.headers.values())


def test_equal_components_of_two_versions_have_equal_hashes(models):
    (_, first), (_, second) = planned(models, "v1"), planned(models, "v2")
    equal = {
        name: first.component_hashes(name) == second.component_hashes(name)
        for name in ("transformer", "text_encoder", "vae", "tokenizer", "scheduler")
    }
    assert equal == {"transformer": False, "text_encoder": True, "vae": True, "tokenizer": True, "scheduler": True}


# --- load


def test_loaded_files_have_the_digests_of_the_seal(models, device):
    directory, found = planned(models)
    buffers = load(directory, found, device)
    assert {path: buffer.digest for path, buffer in buffers.items()} == {
        path: found.seal.files[path] for path in found.headers
    }
    assert weights_bytes(device) == sum(buffer.nbytes for buffer in buffers.values())


def test_small_files_come_with_their_very_bytes_and_weights_do_not(models):
    directory, found = planned(models)
    small = load_small(directory, found, LoadControl())
    assert small == {
        path: (models / "v1" / path).read_bytes() for path in found.seal.files if not path.endswith(".safetensors")
    }


@pytest.mark.parametrize("path", [TRANSFORMER, VAE, TEXT_ENCODER])
def test_a_changed_weight_byte_is_rejected_with_the_path_and_both_hashes(models, device, path):
    directory, found = planned(models)
    flip_byte(models / "v1" / path, -1)
    code, reason = rejection_of(lambda: load(directory, found, device))
    assert code == "hash_mismatch"
    assert path in reason
    assert found.seal.files[path] in reason
    assert blake3((models / "v1" / path).read_bytes()).hexdigest() in reason


def test_a_changed_config_byte_is_rejected_with_the_path_and_both_hashes(models):
    directory, found = planned(models)
    (models / "v1/vae/config.json").write_bytes(b"{}")
    code, reason = rejection_of(lambda: load_small(directory, found, LoadControl()))
    assert code == "hash_mismatch"
    assert reason.startswith("vae/config.json: ")
    assert found.seal.files["vae/config.json"] in reason
    assert blake3(b"{}").hexdigest() in reason


def test_a_small_file_beyond_the_limit_is_rejected_unread(models):
    directory, found = planned(models)
    os.truncate(models / "v1/vae/config.json", MAX_SMALL_FILE + 1)
    assert rejection_of(lambda: load_small(directory, found, LoadControl()))[0] == "size_mismatch"


def test_a_file_that_changed_its_size_since_the_plan_is_rejected(models, device):
    directory, found = planned(models)
    with (models / "v1" / VAE).open("ab") as file:
        file.write(b"x")
    code, reason = rejection_of(lambda: load(directory, found, device))
    assert code == "size_mismatch"
    assert VAE in reason


def test_a_file_that_vanished_since_the_plan_is_rejected(models, device):
    directory, found = planned(models)
    (models / "v1" / VAE).unlink()
    code, reason = rejection_of(lambda: load(directory, found, device))
    assert (code, VAE in reason) == ("file_missing", True)


def test_a_header_that_differed_at_planning_is_rejected_although_the_hash_is_right(models, device):
    sealed = (models / "v1" / VAE).read_bytes()
    (models / "v1" / VAE).write_bytes(sealed.replace(b'"pt"', b'"tp"', 1))
    directory, found = planned(models)
    (models / "v1" / VAE).write_bytes(sealed)
    code, reason = rejection_of(lambda: load(directory, found, device))
    assert code == "header_invalid"
    assert VAE in reason
    assert "changed while it was loaded" in reason


def test_a_header_with_other_tensors_at_the_plan_is_rejected_too(models, device):
    directory, found = planned(models)
    other = dataclasses.replace(found.headers[VAE], raw=found.headers[VAE].raw[:-1] + b"\t")
    lying = dataclasses.replace(found, headers={**found.headers, VAE: other})
    assert rejection_of(lambda: load(directory, lying, device))[0] == "header_invalid"


@pytest.mark.parametrize("path", [TRANSFORMER, VAE, TEXT_ENCODER])
def test_after_a_rejected_load_nothing_is_held(models, device, path):
    directory, found = planned(models)
    flip_byte(models / "v1" / path, -1)
    rejection_of(lambda: load(directory, found, device))
    assert weights_bytes(device) == 0


def test_after_an_abandoned_load_nothing_is_held_and_no_more_was_read(models, device):
    device.reader = reader.HostReader(1, chunk=4096)
    directory, found = planned(models)
    control = LoadControl(lambda: control.abandon() if control.bytes_done >= 3 * 4096 else None, report_seconds=0)
    try:
        load(directory, found, device, control=control)
    except Abandoned:
        pass
    assert control.bytes_done == 3 * 4096
    assert weights_bytes(device) == 0


def test_a_load_that_was_abandoned_before_it_began_allocates_nothing(models, device):
    directory, found = planned(models)
    control = LoadControl()
    control.abandon()
    with pytest.raises(Abandoned):
        load(directory, found, device, control=control)
    assert (control.bytes_done, weights_bytes(device)) == (0, 0)


def test_abandoning_works_from_another_thread(models, device):
    device.reader = reader.HostReader(1, chunk=1000)
    directory, found = planned(models)
    landed, abandoned = threading.Event(), threading.Event()

    def report():
        if control.bytes_done:
            landed.set()
            assert abandoned.wait(60)

    control = LoadControl(report, report_seconds=0)

    def abandon():
        landed.wait(60)
        control.abandon()
        abandoned.set()

    thread = threading.Thread(target=abandon)
    thread.start()
    with pytest.raises(Abandoned):
        load(directory, found, device, control=control)
    thread.join()
    assert control.bytes_done == 1000


def test_all_small_files_are_one_stay_in_each_phase(models):
    directory, found = planned(models)
    control = LoadControl()
    assert len(load_small(directory, found, control)) > 5
    assert [phase.name for phase in control.timeline] == ["read", "verify"]


def test_progress_counts_every_byte_and_the_phases_are_named(models, device):
    directory, found = planned(models)
    reports = []
    control = LoadControl(lambda: reports.append(control.bytes_done))
    load(directory, found, device, control=control)
    size = sum((models / "v1" / path).stat().st_size for path in found.headers)
    assert control.bytes_done == control.bytes_total == size
    assert control.phases.keys() == {"read", "verify"}
    assert reports == sorted(reports)


def test_a_descriptor_opened_before_a_flip_loads_the_version_it_was_opened_on(models, device):
    directory, found = planned(models, "v1")
    os.rename(models / "v1", models / "was-v1")
    os.rename(models / "v2", models / "v1")
    assert load(directory, found, device)[TRANSFORMER].digest == found.seal.files[TRANSFORMER]


# --- files that were verified on disk already


class Reads(list):
    """The names of the files that were hashed on disk so far; `hash_file` hashes one, and calls `meanwhile`."""

    def __init__(self):
        self.meanwhile = lambda: None

    def hash_file(self, fd, path, size, advance):
        self.append(path.rpartition("/")[2])
        self.meanwhile()
        return Device("cpu").hash_file(fd, path, size, advance)


@pytest.fixture
def reads():
    return Reads()


@pytest.fixture
def verified():
    """No verified files yet, and a clock by which every file was written long ago."""
    return VerifiedFiles(now_ns=lambda: time.time_ns() + 10**12)


def check(verified, directory, found, hash_file, *, paths=None, control=None):
    verified.check(directory, found.seal, paths or list(found.headers), control or LoadControl(), hash_file)


def test_verified_files_are_read_once(models, verified, reads):
    directory, found = planned(models)
    check(verified, directory, found, reads.hash_file)
    assert len(reads) == 3
    check(verified, directory, found, reads.hash_file)
    assert len(reads) == 3


def test_files_that_were_loaded_need_not_be_read_again(models, device, verified, reads):
    directory, found = planned(models)
    load_weights(directory, found, list(found.headers), device, LoadControl(), verified)
    check(verified, directory, found, reads.hash_file)
    assert reads == []


def test_only_the_file_that_changed_is_read_again(models, verified, reads):
    directory, found = planned(models)
    check(verified, directory, found, reads.hash_file)
    reads.clear()
    os.utime(models / "v1" / TEXT_ENCODER)
    check(verified, directory, found, reads.hash_file)
    assert reads == ["model.safetensors"]


def test_hashes_of_files_that_came_and_went_are_forgotten_and_such_a_file_is_read_again(models, verified, reads):
    directory, found = planned(models)
    check(verified, directory, found, reads.hash_file)
    for number in range(3 * KEPT_DIGESTS):
        verified.note(DiskStamp(1, FileStamp(number, number, number, number), is_old=True), "0" * 64)
    assert len(verified._digests) == KEPT_DIGESTS
    reads.clear()
    for _ in range(2):
        check(verified, directory, found, reads.hash_file)
    assert len(reads) == 3


def test_a_verified_file_that_then_changed_is_rejected(models, verified, reads):
    directory, found = planned(models)
    check(verified, directory, found, reads.hash_file)
    flip_byte(models / "v1" / VAE, -1)
    code, reason = rejection_of(lambda: check(verified, directory, found, reads.hash_file))
    assert (code, VAE in reason) == ("hash_mismatch", True)


def test_a_file_that_cannot_be_read_is_named(models, verified):
    def broken(fd, path, size, advance):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    directory, found = planned(models)
    with pytest.raises(OSError, match=f"Input/output error: '{VAE}'"):
        check(verified, directory, found, broken, paths=[VAE])


def test_a_known_hash_is_still_compared_with_each_seal(models, verified, reads):
    directory, found = planned(models)
    check(verified, directory, found, reads.hash_file)
    other = dataclasses.replace(found, seal=seal.Seal("0" * 64, {**found.seal.files, VAE: "f" * 64}))
    assert rejection_of(lambda: check(verified, directory, other, reads.hash_file))[0] == "hash_mismatch"
    assert len(reads) == 3


def test_a_file_written_within_the_clocks_grain_is_never_trusted(models, reads):
    verified = VerifiedFiles()
    for path in (TRANSFORMER, VAE, TEXT_ENCODER):
        os.utime(models / "v1" / path)
    directory, found = planned(models)
    check(verified, directory, found, reads.hash_file)
    check(verified, directory, found, reads.hash_file)
    assert len(reads) == 6


def test_reading_for_long_does_not_make_a_fresh_file_trusted(models, reads):
    """A write in the clock tick of the stat leaves the stamp as it was, however long the reading takes after it."""
    now = [(models / "v1" / VAE).stat().st_ctime_ns + 10**6]

    def pass_time():
        now[0] += 10**10

    reads.meanwhile = pass_time
    verified = VerifiedFiles(now_ns=lambda: now[0])
    directory, found = planned(models)
    check(verified, directory, found, reads.hash_file, paths=[VAE])
    check(verified, directory, found, reads.hash_file, paths=[VAE])
    assert len(reads) == 2


def test_checking_stops_when_the_load_is_abandoned(models, reads):
    directory, found = planned(models)
    control = LoadControl()
    control.abandon()
    with pytest.raises(Abandoned):
        check(VerifiedFiles(), directory, found, reads.hash_file, control=control)
    assert reads == []


# --- candidates


def candidate(models, device, *, resident=None, choose=None):
    directory, found = planned(models)
    return load_candidate(
        directory,
        found,
        LoadControl(),
        resident=resident or {},
        choose=lambda small: [Lot((choose or (lambda _: list(found.headers)))(small), device, device)],
        verified=VerifiedFiles(),
        hash_file=device.hash_file,
    )


def test_a_candidate_has_every_sealed_file(models, device):
    made = candidate(models, device)
    assert made.small.keys() | made.weights.keys() == made.plan.seal.files.keys()
    assert made.small.keys().isdisjoint(made.weights.keys())


def test_the_choice_of_weights_is_made_from_verified_files(models, device):
    seen = []
    made = candidate(models, device, choose=lambda small: seen.append(small) or [VAE])
    assert seen == [made.small]
    assert set(made.weights) == {VAE}


def test_weights_that_are_not_loaded_are_verified_too(models, device):
    flip_byte(models / "v1" / VAE, -1)
    code, reason = rejection_of(lambda: candidate(models, device, choose=lambda small: [TRANSFORMER]))
    assert (code, reason.startswith(VAE)) == ("hash_mismatch", True)
    assert weights_bytes(device) == 0


def test_a_candidate_cannot_be_made_from_bytes_that_were_not_verified(models):
    _, found = planned(models)
    with pytest.raises(TypeError, match=r"loader\.load alone"):
        Candidate(found, {}, {})


@pytest.mark.gpu
def test_an_abandoned_load_on_cuda_gives_its_memory_back(folder):
    device = Device("cuda")
    size = 40 * reader.CHUNK
    name = folder.write("big.safetensors", safetensors_bytes({"t": ("U8", (size,), bytes(size))}))
    found = folder.plan(name)
    control = LoadControl(
        lambda: control.abandon() if control.bytes_done >= 2 * reader.CHUNK else None, report_seconds=0
    )
    try:
        load(folder.open(), found, device, control=control)
    except Abandoned:
        pass
    assert 0 < control.bytes_done < size
    assert device.weights_bytes == 0


@pytest.mark.gpu
def test_a_load_into_reserved_memory_allocates_and_frees_nothing(models):
    device = compiled_device()
    directory, found = planned(models)
    first = load(directory, found, device)
    for buffer in first.values():
        buffer.tensors()
    sizes = [size for buffer in first.values() for size in buffer.sizes]
    assert device.reserve(sizes)
    before = allocations()
    second = load(directory, found, device)
    for buffer in second.values():
        buffer.tensors()
    assert allocations() == before
    assert {path: buffer.digest for path, buffer in second.items()} == found_digests(found)


def compiled_device():
    """Return a device whose hash kernel is compiled: compiling it allocates memory, and so does hashing without it."""
    device = Device("cuda")
    assert device.hasher.compiling.result() is not None
    return device


def allocations():
    """Return how often this process has asked CUDA for memory or given it back, the device's and pinned."""
    import torch

    stats = {**torch.cuda.memory_stats(), **torch.cuda.host_memory_stats()}
    return {name: stats[name] for name in ("num_device_alloc", "num_device_free", "num_host_alloc", "num_host_free")}


def found_digests(found):
    return {path: found.seal.files[path] for path in found.headers}


@pytest.mark.gpu
def test_a_file_that_is_only_checked_goes_through_reserved_memory_and_gives_it_back(folder, monkeypatch):
    device = compiled_device()
    data = os.urandom(3_000_001)
    name = folder.write("w.safetensors", safetensors_bytes({"t": ("U8", (len(data),), data)}))
    path = folder.path / name
    assert device.reserve([path.stat().st_size])
    before, on_cpu, done = allocations(), [], []
    monkeypatch.setattr(device_module, "hash_file", lambda *rest: on_cpu.append(1))
    with open(path, "rb") as file:
        found = device.hash_file(file.fileno(), name, path.stat().st_size, done.append)
    assert found == blake3(path.read_bytes()).hexdigest()
    assert (on_cpu, sum(done)) == ([], path.stat().st_size)
    assert (allocations(), device.weights_bytes) == (before, 0)

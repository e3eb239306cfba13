"""`zwatch check` verifies, loads and warms a version without serving it."""

from tests.engine.editing import TRANSFORMER, edit_tensors, seal_again
from zwatch.engine.check import check_version


def test_a_good_version_has_no_findings_and_its_phases_are_returned(models):
    reports = []
    problems, phases = check_version(models / "v1", "cpu", lambda *report: reports.append(report))
    assert problems == []
    assert all(phase in phases for phase in ("read", "verify", "build", "warm"))
    done, total, _ = reports[-1]
    assert done == total > 0
    assert list(dict.fromkeys(what for _, _, what in reports)) == [
        "opening the device",
        "reading",
        "building",
        "warming",
    ]
    assert all(what == "reading" for done, total, what in reports if done < total)


def test_a_bad_version_is_a_finding_with_code_and_reason(models):
    data = bytearray((models / "v1" / TRANSFORMER).read_bytes())
    data[-1] ^= 1
    (models / "v1" / TRANSFORMER).write_bytes(data)
    (problem,), _ = check_version(models / "v1", "cpu", lambda *report: None)
    assert problem.startswith(f"hash_mismatch: {TRANSFORMER}: ")


def test_a_version_without_a_seal_is_a_finding(models):
    (models / "v1/BLAKE3SUMS").unlink()
    (problem,), _ = check_version(models / "v1", "cpu", lambda *report: None)
    assert problem.startswith("seal_missing: ")


def test_weights_that_make_no_image_are_a_finding(models):
    edit_tensors(models / "v1" / TRANSFORMER, lambda tensors: {k: t * float("nan") for k, t in tensors.items()})
    seal_again(models / "v1")
    (problem,), _ = check_version(models / "v1", "cpu", lambda *report: None)
    assert problem.startswith("bad_image: ")

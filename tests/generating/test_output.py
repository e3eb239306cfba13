"""Where pictures are written, also when something appears there meanwhile, or cannot be written."""

import os

import pytest

from zwatch.errors import UsageError, ZwatchError
from zwatch.generating.output import Output, name_for


def test_a_file_that_appears_while_it_is_drawn_stays(tmp_path):
    output = Output(tmp_path / "cat.png", 1)
    output.check()
    (tmp_path / "cat.png").write_bytes(b"another's")
    assert output.write(0, b"ours", "x.png") == tmp_path / "cat_2.png"
    assert [(tmp_path / name).read_bytes() for name in ("cat.png", "cat_2.png")] == [b"another's", b"ours"]


def test_a_link_is_followed_only_to_replace_what_it_leads_to(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    (tmp_path / "cat.png").symlink_to("real")
    (tmp_path / "lost.png").symlink_to("nowhere")
    for name in ("cat.png", "lost.png"):
        with pytest.raises(UsageError, match="is there already"):
            Output(tmp_path / name, 1).check()
    assert Output(tmp_path / "cat.png", 1, replaces=True).write(0, b"new", "x.png") == tmp_path / "cat.png"
    assert (tmp_path / "cat.png").is_symlink()
    assert (tmp_path / "real").read_bytes() == b"new"


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    for replaces in (False, True):
        with pytest.raises(ZwatchError, match="cannot be written"):
            Output(tmp_path / "x" / "cat.png", 1, replaces=replaces).write(0, b"ours", "x.png")
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(ZwatchError, match="No space left"):
        Output(tmp_path / "full", 1).write(0, b"ours", "x.png")
    assert os.listdir(tmp_path) == ["full"]


@pytest.mark.parametrize("name", ["../x.png", "/etc/x.png", "a/b.png", "..", "\0"])
def test_a_name_from_the_network_is_no_path(name):
    assert name_for(name, 7, ".png").endswith("_seed7.png")
    assert "/" not in name_for(name, 7, ".png")

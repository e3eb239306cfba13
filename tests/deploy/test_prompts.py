"""Files of prompts: what is taken, and the line that an error names."""

import os
from pathlib import Path

import pytest

from zwatch.deploy.prompts import DRAWN, Asked, parse, read
from zwatch.errors import UsageError


def test_a_line_is_a_prompt_or_json_and_empty_lines_count():
    found = parse('\ufeffa cat\r\n\n  a "red" house \n{"prompt": "Grüße", "seed": 7, "min_psnr": 35}'.encode(), "x")
    assert found == [
        Asked(1, "a cat", {}),
        Asked(3, 'a "red" house', {}),
        Asked(4, "Grüße", {"seed": 7, "min_psnr": 35}),
    ]


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{a cat}", "begins with a brace and is no JSON object"),
        ("{}", "prompt: found nothing, expected text"),
        ('{"prompt": ""}', 'prompt: found "", expected text'),
        ('{"prompt": "a", "seed": -1}', "seed: found -1, expected a whole number"),
        ('{"prompt": "a", "width": 100}', "width: found 100, expected a multiple of 16"),
        ('{"prompt": "a", "steps": "8"}', 'steps: found "8", expected a whole number'),
        ('{"prompt": "a", "min_ssim": NaN}', "min_ssim: found NaN, expected a number from 0 to 1"),
        ('{"prompt": "a", "image": "x.png"}', "'image' is an unknown field, expected prompt, seed"),
        ('{"prompt": "a", "seed": 1, "seed": 2}', 'the field "seed" is there twice'),
        ("a" * 10_001, "prompt: found "),
        ("{" * 100_000, "is no JSON object"),
    ],
)
def test_a_wrong_line_is_named_with_what_is_wrong(line, what):
    with pytest.raises(UsageError) as caught:
        parse(f"a cat\n\n{line}\n".encode(), "prompts.txt")
    assert str(caught.value).startswith("prompts.txt: line 3: ")
    assert what in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_that_is_no_text_or_empty_is_refused():
    with pytest.raises(UsageError, match="x: line 2: not UTF-8"):
        parse(b"a cat\n\xff", "x")
    for data in (b"", b" \n\n"):
        with pytest.raises(UsageError, match="x: it has no prompt"):
            parse(data, "x")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    for path, what in ((tmp_path / "none", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(UsageError, match=what) as caught:
            read(path)
        assert str(caught.value).startswith(f"--prompts {path}: ")


def test_a_file_without_an_end_is_refused():
    with pytest.raises(UsageError, match="found more than 16 MiB"):
        read(Path("/dev/zero"))


def test_a_pipe_is_read_to_its_end():
    reading, writing = os.pipe()
    with open(reading, "rb"):
        os.write(writing, b"a cat\n")
        os.write(writing, b"a dog")
        os.close(writing)
        assert [one.prompt for one in read(Path(f"/dev/fd/{reading}"))] == ["a cat", "a dog"]


@pytest.mark.parametrize("field", ["min_psnr", "min_ssim"])
def test_a_field_that_has_no_meaning_is_named(field):
    line = f'{{"prompt": "a", "seed": 1, "{field}": 1}}'.encode()
    assert parse(line, "x")[0].fields == {"seed": 1, field: 1}
    with pytest.raises(
        UsageError, match=f"x: line 1: {field} has no meaning here, only for `zwatch golden`; remove it"
    ):
        parse(line, "x", DRAWN)

"""Log lines, as text and as JSON."""

import json
import logging
import os
import subprocess
import sys

import pytest

from zwatch import logs


@pytest.fixture
def line():
    """Return a function that formats one record in a style."""

    def formatted(style, text, *arguments, error=None, level=logging.INFO, **fields):
        record = logging.LogRecord("zwatch.x", level, "", 1, text, arguments, error)
        record.__dict__.update(logs.with_fields(**fields))
        return logs.formatter(style).format(record)

    return formatted


@pytest.mark.parametrize(
    "text", ["plain", 'a "quote"', "two\nlines", "nul\0", "日本", "a\u2028b", "half \udcff", "\x85"]
)
def test_a_json_line_is_one_line_of_valid_json_whatever_the_text(line, text):
    written = line("json", "%s", text, job=text)
    assert written.splitlines() == [written]
    assert written.isascii(), "valid in every encoding of the stream"
    entry = json.loads(written)
    assert (entry["message"], entry["job"], entry["level"], entry["logger"]) == (text, text, "info", "zwatch.x")


def test_an_exception_is_in_the_same_json_line(line):
    try:
        raise ValueError("two\nlines")
    except ValueError:
        written = line("json", "it broke", error=sys.exc_info())
    assert "\n" not in written
    assert "ValueError: two\nlines" in json.loads(written)["exception"]


def test_both_styles_have_the_id_of_the_request_if_there_is_one(line):
    assert "request_id" not in json.loads(line("json", "x"))
    token = logs.request_id.set("mine-7")
    try:
        assert json.loads(line("json", "x"))["request_id"] == "mine-7"
        assert line("text", "x").endswith(" x  [mine-7]")
    finally:
        logs.request_id.reset(token)
    assert line("text", "x").endswith(" x")


def test_a_field_cannot_replace_what_every_line_has(line):
    entry = json.loads(line("json", "x", level=logging.WARNING, message="y", version=None))
    assert entry["message"] == "x"
    assert "version" not in entry, "what is None is left out"
    assert line("text", "x", level=logging.WARNING).endswith("warning: x")


def test_a_python_warning_becomes_a_log_line():
    warn = "import sys, warnings; from zwatch import logs; logs.set_up('json'); warnings.warn('two\\nlines')"
    written = subprocess.run([sys.executable, "-c", warn], capture_output=True, text=True, check=True).stderr
    [entry] = [json.loads(line) for line in written.splitlines()]
    assert (entry["level"], entry["logger"]) == ("warning", "py.warnings")
    assert "two\nlines" in entry["message"]


@pytest.mark.parametrize(("style", "lines"), [("json", 1), ("text", 2)])
def test_every_line_for_the_journal_begins_with_its_priority(monkeypatch, style, lines):
    found = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    for level, priority in ((logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)):
        record = logging.LogRecord("zwatch.x", level, "", 1, "two\nlines", (), None)
        written = logs.formatter(style).format(record).split("\n")
        assert [one[:3] for one in written] == [f"<{priority}>"] * lines
    assert logs.with_priority("zwatch: it ended", logging.ERROR) == "<3>zwatch: it ended"
    assert json.loads(logs.formatter("json").format(record)[3:])["message"] == "two\nlines"


@pytest.mark.parametrize("stream", ["", "8:1", "x", "1:2:3"])
def test_a_standard_error_that_is_not_the_journal_gets_no_priorities(monkeypatch, stream):
    monkeypatch.setenv("JOURNAL_STREAM", stream)
    assert logs.with_priority("it ended", logging.ERROR) == "it ended"

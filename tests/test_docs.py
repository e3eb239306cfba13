"""The documentation says what the code does."""

import re
from pathlib import Path

from zwatch.errors import REQUEST_ERRORS

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_of_errors_has_every_code_as_the_code_has_it():
    rows = re.findall(
        r"^\| (\d+) \| `(\w+)` \| (\w+) \| (\w*) ?\| (.+) \|$", (DOCS / "errors.md").read_text(), re.MULTILINE
    )
    assert [(int(status), code, fault, retry, meaning) for status, code, fault, retry, meaning in rows] == [
        (kind.status, code, kind.fault.value, "no" if kind.retry is False else "", kind.meaning)
        for code, kind in REQUEST_ERRORS.items()
    ]

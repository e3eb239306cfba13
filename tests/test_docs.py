"""The documentation says what the code does."""

import re
import subprocess
from pathlib import Path

import pytest

from zwatch.errors import REQUEST_ERRORS

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"


def test_the_page_of_errors_has_every_code_as_the_code_has_it():
    rows = re.findall(
        r"^\| (\d+) \| `(\w+)` \| (\w+) \| (\w*) ?\| (.+) \|$", (DOCS / "errors.md").read_text(), re.MULTILINE
    )
    assert [(int(status), code, fault, retry, meaning) for status, code, fault, retry, meaning in rows] == [
        (kind.status, code, kind.fault.value, "no" if kind.retry is False else "", kind.meaning)
        for code, kind in REQUEST_ERRORS.items()
    ]


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="this is not a git repository")
def test_the_readme_rolls_back_to_what_a_fresh_clone_served():
    deploying = (REPOSITORY / "README.md").read_text().partition("\n## Deploying\n")[2].partition("\n## ")[0]
    first, back = re.findall(r"^    ln -sf (\w+) models/current", deploying, re.MULTILINE)
    served = subprocess.run(
        ["git", "-C", REPOSITORY, "show", ":models/current"], capture_output=True, text=True, check=True
    ).stdout
    assert back == served
    assert first not in ("v1", "v2")  # it was added by the line above

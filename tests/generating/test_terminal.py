"""Pictures in a terminal: which terminals are asked and believed, and that what they are sent is the picture."""

import base64
import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import numpy as np
import pytest
from PIL import Image

from tests.harness import pixels
from zwatch.generating.terminal import Screen, screen_of, shown

ATTRIBUTES = b"\x1b[?62;22c"
WITH_SIXELS = b"\x1b[?62;4;22c"
OK = b"\x1b_Gi=31;OK\x1b\\"
SIZE = (100, 40, 1000, 800)


def named(name):
    return b"\x1bP>|%b\x1b\\" % name


@pytest.mark.parametrize(
    ("answers", "environment", "protocol"),
    [
        (OK + named(b"kitty(0.45)") + ATTRIBUTES, {}, "kitty"),
        (OK + named(b"WezTerm 2026") + WITH_SIXELS, {}, "kitty"),
        (b"\x1b_Gi=31;ENOTSUPPORTED\x1b\\" + ATTRIBUTES, {}, None),
        (named(b"iTerm2 3.6.1") + WITH_SIXELS, {}, "iterm2"),
        (ATTRIBUTES, {"TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        (ATTRIBUTES, {"TERM_PROGRAM": "iTerm.app", "TMUX": "/tmp/tmux"}, None),
        (named(b"tmux 3.6") + ATTRIBUTES, {"TERM_PROGRAM": "iTerm.app"}, None),
        (named(b"foot(1.25)") + WITH_SIXELS, {}, "sixel"),
        (named(b"XTerm(403)") + ATTRIBUTES, {}, None),
        (b"\x1b[?64;41c", {}, None),
        (ATTRIBUTES, {"TERM_PROGRAM": "Apple_Terminal"}, None),
        (b"", {}, None),
        (b"typed before\n", {}, None),
    ],
)
def test_a_terminal_shows_pictures_as_it_answers_or_claims(answers, environment, protocol):
    found = screen_of(answers, environment, SIZE)
    assert (found and found.protocol) == protocol
    if found is not None:
        assert (found.columns, found.rows, found.cell) == (100, 40, (10, 20))


def test_a_terminal_that_does_not_know_its_size_is_an_ordinary_one():
    assert screen_of(OK, {}, (0, 0, 0, 0)) == Screen("kitty", 80, 24)
    assert screen_of(OK, {}, (120, 50, 0, 0)) == Screen("kitty", 120, 50)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((256, 256), (256, 256)), ((2000, 500), (1000, 250)), ((500, 7600), (50, 760)), ((20000, 16), (1000, 1))],
)
def test_a_picture_is_not_larger_than_the_terminal(size, fitted):
    assert Screen("sixel", 100, 40, (10, 20)).fitted(*size) == fitted


def file_of(image, kind="PNG"):
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


@pytest.fixture
def image():
    rows, columns = np.mgrid[0:50, 0:70]
    return Image.fromarray(np.stack([rows // 10 * 50, columns // 10 * 30, rows * 0], axis=-1).astype(np.uint8))


def kitty(codes):
    """Return the keys of the first code, and the file that all of them carry."""
    found = re.findall(rb"\x1b_G([^;]*);([^\x1b]*)\x1b\\", codes)
    assert all(len(piece) <= 4096 for _, piece in found)
    assert [keys[-3:] for keys, _ in found] == [b"m=1"] * (len(found) - 1) + [b"m=0"]
    return dict(pair.split(b"=") for pair in found[0][0].split(b",")), base64.b64decode(b"".join(piece for _, piece in found))  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_kittys_codes_carry_the_picture_as_png(kind):
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    screen, codes = Screen("kitty", 80, 24), shown(Screen("kitty", 80, 24), file_of(noise, kind))
    keys, file = kitty(codes)
    assert keys == {b"a": b"T", b"f": b"100", b"q": b"2", b"m": b"1"}
    assert file.startswith(b"\x89PNG")
    assert pixels(file) == pixels(file_of(noise, kind))
    assert kitty(shown(screen, file_of(noise.resize((1000, 1000)))))[0][b"c"] == b"44", "a large one is scaled"


def test_iterm2s_code_carries_the_file_itself(image):
    file = file_of(image)
    found = re.fullmatch(rb"\x1b\]1337;File=([^:]*):([^\x07]*)\x07\n", shown(Screen("iterm2", 80, 24), file))
    assert base64.b64decode(found[2]) == file
    assert dict(pair.split(b"=") for pair in found[1].split(b";")) == {
        b"inline": b"1", b"size": b"%d" % len(file), b"width": b"9", b"preserveAspectRatio": b"1",
    }  # fmt: skip


def decoded_sixels(codes):
    """Return the pixels that a terminal would show."""
    head, body = re.fullmatch(rb'\x1bPq"1;1;(\d+;\d+)(.*)\x1b\\\n', codes, re.DOTALL).groups()
    width, height = map(int, head.split(b";"))
    found, palette = np.zeros((height + 6, width, 3)), {}
    row = column = colour = 0
    for token in re.findall(rb"#\d+;2;\d+;\d+;\d+|#\d+|!\d+.|.", body, re.DOTALL):
        if token.startswith(b"#"):
            colour, *values = map(int, token[1:].split(b";"))
            if values:
                palette[colour] = [value * 255 / 100 for value in values[1:]]
        elif token == b"$":
            column = 0
        elif token == b"-":
            row, column = row + 6, 0
        else:
            count = int(token[1:-1]) if token.startswith(b"!") else 1
            for bit in range(6):
                if (token[-1] - 63) >> bit & 1:
                    found[row + bit, column : column + count] = palette[colour]
            column += count
    return found[:height]


def test_sixels_are_the_picture(image):
    found = decoded_sixels(shown(Screen("sixel", 80, 24), file_of(image)))
    assert found.shape == (50, 70, 3)
    assert np.abs(found - np.asarray(image)).max() < 6, "colours are in per cent"


class Terminal:
    """A process whose terminal answers what it is asked."""

    def __init__(self, directory, answers, *arguments, out=None, stop_after=None):
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 1000, 800))
        # A session's leader gets the first terminal that it opens.
        take = "import os, sys; os.close(os.open(os.ttyname(2), os.O_RDWR)); os.execv(sys.executable, [sys.executable, '-m', 'zwatch', *sys.argv[1:]])"
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        self.process = subprocess.Popen(
            [sys.executable, "-c", take, *map(str, arguments)], cwd=directory, env=environment, start_new_session=True,
            stdin=slave, stdout=slave if out is None else out, stderr=slave,
        )  # fmt: skip
        self.seen, self._master, self._answers, self._stop_after = b"", master, answers, stop_after
        reading = threading.Thread(target=self._answer)
        reading.start()
        self.status = self.process.wait(timeout=60)
        self.flags = termios.tcgetattr(slave)[3]
        os.close(slave)
        reading.join()
        os.close(master)

    def _answer(self):
        has_answered = False
        while True:
            try:
                piece = os.read(self._master, 65536)
            except OSError:  # nobody has it open any more
                return
            if not piece:
                return
            self.seen += piece
            if self._stop_after is not None and self._stop_after in self.seen:
                os.write(self._master, b"\x03")  # Ctrl-C
                self._stop_after = None
            if b"\x1b[c" in self.seen and not has_answered:
                has_answered = True
                os.write(self._master, self._answers)


def test_a_terminal_sees_the_progress_and_the_picture(service, tmp_path):
    terminal = Terminal(tmp_path, OK + ATTRIBUTES, "generate", "a cat", "-o", "cat.png", "--url", service.url)
    assert terminal.status == 0, terminal.seen
    assert b"cat.png: v1, seed " in terminal.seen
    assert b"zwatch" in terminal.seen.partition(b"cat.png")[0], "the progress"
    asked, _, rest = terminal.seen.partition(b"\x1b[c")
    assert b"a=q" in asked
    assert kitty(rest)[1] == (tmp_path / "cat.png").read_bytes()
    assert OK not in terminal.seen, "the answer is not echoed"
    assert terminal.flags & termios.ECHO, "typing is shown again"
    assert terminal.flags & termios.ICANON


@pytest.mark.parametrize("answers", [ATTRIBUTES, b""])
def test_a_terminal_that_does_not_say_so_gets_no_picture(service, tmp_path, answers):
    terminal = Terminal(tmp_path, answers, "generate", "a cat", "-o", "cat.png", "--steps", 1, "--url", service.url)
    assert (terminal.status, b"cat.png: v1" in terminal.seen) == (0, True)
    assert terminal.seen.count(b"\x1b_G") == 1, "only the question"
    assert terminal.flags & termios.ECHO


@pytest.mark.parametrize("arguments", [["--no-show"], ["--json"]])
def test_a_terminal_is_not_asked_in_vain(service, tmp_path, arguments):
    terminal = Terminal(
        tmp_path, OK + ATTRIBUTES, "generate", "a cat", "-o", "cat.png", "--steps", 1, "--url", service.url, *arguments
    )
    assert (terminal.status, b"\x1b_G" in terminal.seen) == (0, False)


def test_a_terminal_behind_a_pipe_gets_only_the_progress(service, tmp_path):
    with (tmp_path / "out").open("wb") as out:
        terminal = Terminal(
            tmp_path, OK + ATTRIBUTES, "generate", "a cat", "-o", "cat.png", "--steps", 1, "--url", service.url, out=out
        )
    assert (terminal.status, b"\x1b_G" in terminal.seen) == (0, False)
    assert (tmp_path / "out").read_bytes().startswith(b"cat.png: v1")


def test_who_starts_the_server_of_agents_by_hand_is_told_what_it_is(tmp_path):
    terminal = Terminal(tmp_path, b"", "mcp", stop_after=b"Ctrl-C ends it")
    assert b"zwatch: this speaks the Model Context Protocol" in terminal.seen
    assert terminal.status == 130

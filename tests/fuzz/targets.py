"""What is fuzzed: each target takes any bytes and raises if a parser breaks a promise. Refusals are no failures."""

import io
import json
import posixpath
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors

from zwatch.api import sessions
from zwatch.api.a1111.changing import fitted_img2img, wanted_changes
from zwatch.api.a1111.checkpoints import FIELD
from zwatch.api.a1111.img2img import Img2ImgRequest
from zwatch.api.a1111.txt2img import SdOptionsRequest, Txt2ImgRequest, checkpoint_asked, wanted_images
from zwatch.api.answers import encoded, error_object
from zwatch.api.bodies import fields_of
from zwatch.api.native.deploy import AliasRequest, DeployRequest, NoFields
from zwatch.api.native.operations import LoginRequest
from zwatch.api.openai.edits import EditsRequest, edit_of, fitted_edit
from zwatch.api.openai.requests import ImagesRequest, images_of, with_client_names
from zwatch.deploy import header as headers
from zwatch.deploy.resolving import LinkStamp
from zwatch.deploy.seal import SEAL_NAME, format_seal, parse_seal
from zwatch.errors import Rejection, RequestError, UsageError
from zwatch.generation.fields import validated
from zwatch.generation.image_details import read_details
from zwatch.generation.image_order import ImageOrder
from zwatch.generation.infotext import parse_infotext
from zwatch.generation.picture_settings import picture_settings
from zwatch.generation.png_text import png_texts
from zwatch.generation.request import GenerateRequest, parse_generate
from zwatch.generation.sources import MAX_SIDE, read_source
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.saved import serialise
from zwatch.rollout.state import StateFile
from zwatch.signing.bundle import parse_bundle
from zwatch.signing.policy import files_of, read_policy
from zwatch.signing.statement import parse_statement

_MEMORY = Path("/dev/shm")
_folder = tempfile.TemporaryDirectory(prefix="zwatch-fuzz-", dir=_MEMORY if _MEMORY.is_dir() else None)
SCRATCH = Path(_folder.name)
_MOST_TAIL = 2**16
_LONGEST_MESSAGE = 3000

STRICTER = (
    "twice", "tensors, the limit is", "unknown dtype", "at most 8 sizes", "must have exactly", "__metadata__ must be",
    "bytes long, the limit is",
)  # fmt: skip
"""The words of zwatch's own rules, which the safetensors package does not have."""


def header(data: bytes) -> None:
    """A whole file (`r`), or the JSON of a header (`j`), behind which the bytes follow for which it asks: what zwatch accepts, the
    safetensors package reads as the same tensors; what zwatch refuses and that package does not, is against a rule of zwatch."""
    file = data[1:] if data[:1] == b"r" else _with_tail(data[1:])
    theirs = _deserialized(file)
    try:
        length = headers.header_length(file[: headers.LENGTH_BYTES], len(file), "x.safetensors")
        found = headers.parse_header(file[: headers.LENGTH_BYTES + length], len(file), "x.safetensors")
    except Rejection as rejection:
        reason = rejection.reason
    else:
        reason = None
    if reason is not None:
        _check_message(reason)
        assert theirs is None or any(words in reason for words in STRICTER), reason
        return
    assert theirs is not None, "the safetensors package refuses it"
    ours = {
        name: (one.dtype, one.shape, file[one.begin : one.end])
        for name, one in found.tensors.items()
    }  # fmt: skip
    assert ours == theirs
    path = SCRATCH / "x.safetensors"
    path.write_bytes(file)
    with safetensors.safe_open(path, "numpy") as opened:
        assert (opened.metadata() or {}) == found.metadata
    if len(file) < 4096:
        _check_stamping(path, found)


def _check_stamping(path: Path, before: headers.Header) -> None:
    """Writing a version changes nothing else."""
    file = headers.with_version(before, "v9", "x.safetensors") + path.read_bytes()[before.data_start :]
    path.write_bytes(file)
    with open(path, "rb") as opened:
        after = headers.read_header(opened.fileno(), "x.safetensors")
    assert after.metadata == {**before.metadata, "version": "v9"}
    assert _deserialized(file) is not None
    moved = after.data_start - before.data_start
    assert after.tensors == {
        name: headers.TensorInfo(one.dtype, one.shape, one.begin + moved, one.end + moved)
        for name, one in before.tensors.items()
    }


def _with_tail(text: bytes) -> bytes:
    """Return a file with this header, and as many bytes behind it as its tensors take, up to a limit."""
    size = 0
    try:
        for entry in json.loads(text).values():
            size = max(size, int(entry["data_offsets"][1])) if "data_offsets" in entry else size
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        pass
    tail = bytes(number % 251 for number in range(min(size, _MOST_TAIL)))
    return len(text).to_bytes(headers.LENGTH_BYTES, "little") + text + tail


def _deserialized(file: bytes) -> dict[str, Any] | None:
    """Return the tensors as the safetensors package reads them; None if it refuses the file."""
    try:
        found = safetensors.deserialize(file)
    except safetensors.SafetensorError:
        return None
    return {name: (one["dtype"], tuple(one["shape"]), bytes(one["data"])) for name, one in found}


def seal(data: bytes) -> None:
    """A seal: what zwatch accepts, `b3sum --check` reads as the same paths, and writing it again changes nothing."""
    try:
        found = parse_seal(data)
    except Rejection as rejection:
        _check_message(rejection.reason)
        return
    for path in found.files:
        assert not Path(path).is_absolute()
        assert ".." not in Path(path).parts
        assert Path(path).as_posix() == path
    again = parse_seal(format_seal(found.files))
    assert again.files == dict(found.files)
    empty = SCRATCH / "empty"
    empty.mkdir(exist_ok=True)
    sums = SCRATCH / SEAL_NAME
    sums.write_bytes(data)
    try:
        checked = subprocess.run(["b3sum", "--check", sums], cwd=empty, capture_output=True, timeout=60)
    except FileNotFoundError:
        return
    lines = checked.stdout.decode().split("\n")[:-1]
    assert len(lines) == len(found.files), (checked.stdout, checked.stderr)
    for line, path in zip(lines, found.files, strict=True):
        assert line.startswith(f"{path}: FAILED ("), (line, path)


def infotext(data: bytes) -> None:
    """A picture: a whole file (`f`), AUTOMATIC1111's text (`t`), the chunks of a PNG (`c`), the graph or the workflow of ComfyUI
    (`g`, `w`), or the EXIF of a JPEG (`e`). Either there is no picture or nothing in it, a 400, or all settings are valid."""
    kind, rest = data[:1], data[1:]
    if kind == b"t":
        pairs = parse_infotext(rest.decode("utf-8", "replace"))
        assert all(isinstance(one, str) for pair in pairs.items() for one in pair)
        file = png([(b"iTXt", b"parameters\0\0\0\0\0" + rest)])
    elif kind == b"c":
        pieces = rest.split(b"\n\n")
        file = png([(piece[:4].ljust(4, b"x"), piece[4:]) for piece in pieces])
    elif kind in (b"g", b"w"):
        file = png([(b"tEXt", (b"prompt" if kind == b"g" else b"workflow") + b"\0" + rest)])
    elif kind == b"e":
        file = JPEG[:2] + b"\xff\xe1" + (len(rest[:60000]) + 8).to_bytes(2) + b"Exif\0\0" + rest[:60000] + JPEG[2:]
    else:
        file = rest
    _check_texts(file)
    try:
        found = picture_settings(file)
    except RequestError as error:
        _check_error(error)
        return
    assert found["settings"]
    parse_generate({"prompt": "x", **found["settings"]})
    encoded(found)


def _check_texts(file: bytes) -> None:
    """Where the fast reader finds texts, Pillow finds the same, or does not read the file."""
    fast = png_texts(io.BytesIO(file))
    if fast is None:
        return
    try:
        slow = read_details(file)
    except (OSError, ValueError, SyntaxError):
        return
    assert slow.parameters == fast.get("parameters", "")
    assert slow.version == fast.get("zwatch_version", "")


def png(chunks: list[tuple[bytes, bytes]]) -> bytes:
    """Return a PNG of one pixel with these chunks before it."""
    pixels = zlib.compress(b"\0\0")
    all_chunks = [(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4) for kind, body in all_chunks
    )


def _jpeg() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "JPEG")
    return file.getvalue()


JPEG = _jpeg()


def state(data: bytes) -> None:
    """A file of the state directory: the state (`s`), the ended sessions (`e`), the order of the images (`o`). It is used, or put
    aside: the service starts with any of them, and what it writes it reads again."""
    kind, rest = data[:1], data[1:]
    if kind == b"o":
        _check_order(rest)
        return
    name = sessions.FILE if kind == b"e" else "state.json"
    for old in SCRATCH.glob(f"{name}*"):
        old.unlink()
    path = SCRATCH / name
    path.write_bytes(rest)
    if kind == b"e":
        ended = sessions._read(path)
        if not path.exists():
            assert ended == {}
        return
    saved = _state_file.read()
    if not path.exists():
        return
    assert _reread(saved) == saved
    saved.crashed_with()
    stamp = LinkStamp(1, 2, 3)
    key = VersionKey("v9", None)
    for blamed in saved.begin_run():
        saved.is_set_aside(blamed, stamp)
    for name in list(saved.aliases):
        saved.fallbacks(name, key)
        for good in saved.alias(name).good:
            saved.why_set_aside(name, good, name)
        saved.alias(name).note_promoted(key)
        saved.note_good(name, key)
    saved.note_links({key: frozenset({stamp})})
    saved.end_run()
    assert _reread(saved) == saved


def _reread(saved: Any) -> Any:
    (SCRATCH / "state.json").write_bytes(serialise(saved))
    return _state_file.read()


_state_file = StateFile(SCRATCH)


def _check_order(text: bytes) -> None:
    name = "20261121_142231_seed42.png"
    order = ImageOrder(text.decode("utf-8", "replace"))
    order.add_found({name: 0, "20261121_142232_seed1_2.png": 1})
    assert set(order.page(10, None)) == {name, "20261121_142232_seed1_2.png"}
    again = ImageOrder(order.text())
    again.add_found({name: 0, "20261121_142232_seed1_2.png": 1})
    assert again.page(10, None) == order.page(10, None)


MODELS: dict[bytes, tuple[type[Any], Callable[[Any], Any]]] = {
    b"g": (GenerateRequest, lambda asked: asked),
    b"i": (ImagesRequest, lambda asked: images_of(asked, "current")),
    b"t": (Txt2ImgRequest, lambda asked: (checkpoint_asked(asked), wanted_images(asked, "current"))),
    b"e": (EditsRequest, lambda asked: edit_of(fitted_edit(asked), "current")),
    b"c": (Img2ImgRequest, lambda asked: wanted_changes(fitted_img2img(asked), "current")),
    b"o": (SdOptionsRequest, lambda asked: getattr(asked, FIELD)),
    b"d": (DeployRequest, lambda asked: asked),
    b"a": (AliasRequest, lambda asked: asked),
    b"l": (LoginRequest, lambda asked: asked),
    b"n": (NoFields, lambda asked: asked),
}
TYPES = {b"j": "application/json", b"f": "application/x-www-form-urlencoded", b"m": "multipart/form-data; boundary=X"}


def body(data: bytes) -> None:
    """A request's body: one letter names the call, one the content type, the rest is the body (`x`: its first line is the content
    type). It is accepted, or refused with a 400 that names the field in few words."""
    (model, use), kind, raw = MODELS.get(data[:1], MODELS[b"g"]), data[1:2], data[2:]
    content_type = TYPES.get(kind, "")
    if kind == b"x":
        line, _, raw = raw.partition(b"\n")
        content_type = line.decode("utf-8", "surrogateescape")
    try:
        use(validated(model, fields_of(content_type, raw, model)))
    except RequestError as error:
        _check_error(error)
        _check_error(with_client_names(error))


def _check_error(error: RequestError) -> None:
    assert error.status == 400, error
    _check_message(error.message)
    answer = encoded({"error": error_object(error)})
    assert json.loads(answer)["error"]["code"]
    assert error.param is None or len(error.param) <= _LONGEST_MESSAGE


def _check_message(text: str) -> None:
    assert 0 < len(text) <= _LONGEST_MESSAGE, f"a message of {len(text)} characters"
    text.encode()


def signature(data: bytes) -> None:
    """What is beside a seal, or decides about it: a bundle (`b`), a statement (`s`) or a policy (`p`). It is read, or refused in few
    words. A statement that is read names each file once, by a path that leads nowhere else."""
    kind, text = data[:1], data[1:]
    try:
        if kind == b"b":
            parse_bundle(text)
        elif kind == b"s":
            for path in parse_statement(text).files:
                assert posixpath.normpath(f"/v1/{path}") == f"/v1/{path}"
        else:
            (SCRATCH / "policy.toml").write_bytes(text)
            files_of(SCRATCH / "policy.toml")
            read_policy(SCRATCH / "policy.toml")
    except Rejection as rejection:
        assert rejection.code == "signature_invalid"  # noqa: PT017 (no test)
        _check_message(rejection.reason)
    except UsageError as error:
        _check_message(str(error))


def picture(data: bytes) -> None:
    """A file of an image that is to be changed: it becomes pixels of the size that is kept, or is refused in few words."""
    try:
        found = read_source(data, data)
    except RequestError as error:
        _check_error(error)
        assert error.param == "image"  # noqa: PT017 (no test)
        return
    assert found.mask is not None
    assert (found.picture.mode, found.mask.mode) == ("RGB", "L")
    assert found.picture.size == found.mask.size, "the same file"
    assert max(found.picture.size) <= MAX_SIDE


TARGETS: dict[str, Callable[[bytes], None]] = {
    "header": header,
    "seal": seal,
    "infotext": infotext,
    "state": state,
    "body": body,
    "signature": signature,
    "picture": picture,
}

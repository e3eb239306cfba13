"""The search index on real files: what is found, what is read again, and databases that cannot be used."""

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from zwatch.engine.parameters import GenerationParameters
from zwatch.generation import search_index as module
from zwatch.generation.image_details import details_of
from zwatch.generation.image_files import encode
from zwatch.generation.image_index import ImageIndex
from zwatch.generation.request import ImageFormat, parse_generate
from zwatch.generation.search_index import Query, SearchIndex
from zwatch.rollout.lifecycle import VersionKey

PROMPTS = ["A cat wearing Sunglasses", "戴墨镜的猫", "ein KÄFER, Straße", "a dog", "\uff43\uff41\uff54 in full width"]


def image_file(prompt, seed=1, version="v1", image_format="png"):
    """Return an image file as a job makes it."""
    asked = parse_generate({"prompt": prompt, "seed": seed, "negative_prompt": "blurry"})
    parameters = GenerationParameters(prompt, "blurry", 32, 16, 8, 0.0, (seed,))
    details = details_of(asked, parameters, VersionKey(version, "ab" * 32), seed)
    return encode(Image.new("RGB", (32, 16), "red"), details, ImageFormat(image_format), 90)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "state" / "search.sqlite"


@pytest.fixture
def images(tmp_path):
    """An index of images, and the search index that follows it."""
    return Images(tmp_path / "out", tmp_path / "state" / "search.sqlite")


class Images:
    def __init__(self, directory, file):
        self.directory, self.file = directory, file
        self.searches = []
        self.restart()

    def restart(self):
        for one in self.searches:
            one.close()
        self.index = ImageIndex(self.directory, look_seconds=-1.0, on_change=self.note)
        self.search = SearchIndex(self.directory, self.file, self.index.sizes)
        self.searches.append(self.search)
        self.index.open()

    def note(self, added, removed):
        self.search.note(added, removed)

    def put(self, second, file):
        """Write a file as another program does; return its name."""
        name = f"20261121_1422{second:02}_seed1.png"
        (self.directory / name).write_bytes(file)
        self.index.look()
        return name

    def rows(self):
        return self.search._database.execute("SELECT count(*) FROM images").fetchone()[0]

    def found(self, text="", version=None, seed=None):
        names, indexed = self.search.find(Query.of(text, version, seed), 60.0)
        assert indexed == 1.0
        return sorted(name for name in names if self.index.has(name))


@pytest.fixture
def filled(images):
    """The same with an image of each prompt, and their names."""
    names = [images.put(second, image_file(prompt)) for second, prompt in enumerate(PROMPTS)]
    yield images, names
    images.search.close()


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("cat", [0, 4]), ("CAT", [0, 4]), ("sunglasses cat", [0]), ("glass", [0]), ("sun cat dog", []), ("墨镜", [1]), ("猫", [1]),
        ("墨 猫", [1]), ("käfer", [2]), ("KA\u0308FER", [2]), ("STRASSE", [2]), ("a", [0, 2, 3, 4]), ("blurry", []),
        ("%", []), ("_", []), ("'", []), ('"', []), ("\0", []), ("*", []), ("\ud800", []), ("\u3000cat\u3000", [0, 4]),
    ],
)  # fmt: skip
def test_all_words_are_found_in_any_case_and_script_also_within_words(filled, text, numbers):
    images, names = filled
    assert images.found(text) == [names[number] for number in numbers]


def test_a_version_and_a_seed_narrow_a_search(images):
    names = [
        images.put(second, image_file("a cat", seed, version))
        for second, (seed, version) in enumerate([(1, "v1"), (2, "v1"), (2, "v2"), (2**63 - 1, "v2")])
    ]
    assert images.found(version="v1") == names[:2]
    assert images.found("cat", "v2", 2) == [names[2]]
    assert images.found(seed=2**63 - 1) == [names[3]]
    assert images.found("dog", "v2", 2) == []
    assert images.found(version="v") == [], "a version's whole name"


@pytest.mark.parametrize("query", [("", None, None), ("  ", "", None)])
def test_a_query_without_anything_is_none(query):
    assert not Query.of(*query)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
def test_every_format_and_the_longest_prompts_are_found(images, image_format):
    name = f"20261121_142231_seed1.{ImageFormat(image_format).suffix}"
    (images.directory / name).write_bytes(image_file("猫" * 9_990 + " 龙", image_format=image_format))
    images.index.look()
    assert images.found("龙 猫猫猫") == [name]


def test_what_is_saved_deleted_or_changed_is_found_at_once(filled):
    images, names = filled
    assert images.found("dog") == [names[3]]
    new = images.put(30, image_file("another dog"))
    assert images.found("dog") == [names[3], new]
    images.index.delete(new)
    assert images.found("dog") == [names[3]]
    (images.directory / names[3]).unlink()
    images.index.look()
    assert images.found("dog") == []
    assert images.rows() == 4


def test_after_a_restart_only_what_changed_is_read(filled, monkeypatch):
    images, names = filled
    assert images.found("dog")
    (images.directory / names[0]).unlink()
    (images.directory / names[1]).write_bytes(image_file("a longer prompt than it was, with a horse"))
    (images.directory / "20261121_142259_seed1.png").write_bytes(image_file("a new horse"))
    read, reader = [], module.read_kept_image
    monkeypatch.setattr(module, "read_kept_image", lambda path: read.append(path.name) or reader(path))
    images.restart()
    assert images.found("horse") == [names[1], "20261121_142259_seed1.png"]
    assert images.found("dog") == [names[3]]
    assert sorted(read) == [names[1], "20261121_142259_seed1.png"]
    assert images.rows() == 5


def test_the_newest_are_read_first_and_the_rest_is_announced(filled, monkeypatch):
    images, names = filled
    monkeypatch.setattr(module, "_BATCH", 2)
    images.file = None
    images.restart()
    assert images.search.find(Query.of("cat", None, None), 0.0) == (set(), 0.0)
    images.search._guarded(images.search._read_batch)
    assert images.search.find(Query.of("a", None, None), 0.0) == ({names[3], names[4]}, pytest.approx(0.4))
    while images.search.update(0.0):
        images.search._guarded(images.search._read_batch)
    assert images.found("cat") == [names[0], names[4]]


def test_a_file_that_was_not_complete_yet_is_read_again(images, monkeypatch):
    monkeypatch.setattr(module, "_AGAIN_SECONDS", 0.0)
    name = images.put(1, b"")
    assert images.found("cat") == []
    (images.directory / name).write_bytes(image_file("a cat"))
    assert images.found("cat") == [name]


@pytest.mark.parametrize("request_text", ['{"prompt": "\\ud800 cat"}', '{"prompt": ["cat"], "seed": "x"}', "[" * 5000])
def test_strange_metadata_does_no_harm(filled, request_text):
    images, names = filled
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("zwatch_request", request_text)
    name = "20261121_142240_seed1.png"
    Image.new("RGB", (8, 8)).save(images.directory / name, pnginfo=chunks)
    images.index.look()
    is_found = request_text.endswith('cat"}')
    assert images.found("cat") == [names[0], names[4], *([name] if is_found else [])]


def test_a_directory_that_is_not_mounted_at_a_start_loses_nothing(filled, monkeypatch):
    images, names = filled
    assert images.found("dog")
    images.directory.rename(images.directory.with_name("elsewhere"))
    images.restart()
    assert images.found("dog") == []
    images.directory.rmdir()
    images.directory.with_name("elsewhere").rename(images.directory)
    monkeypatch.setattr(module, "read_kept_image", pytest.fail)
    images.index.look()
    assert images.found("dog") == [names[3]]


@pytest.mark.parametrize("content", [b"this is no database" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_database_is_put_aside_and_made_again(filled, file, caplog, content):
    images, names = filled
    assert images.found("dog")
    images.search.close()
    file.write_bytes(content)
    images.restart()
    assert images.found("dog") == [names[3]]
    assert sorted(path.name for path in file.parent.iterdir() if not path.name.endswith(("-wal", "-shm"))) == [
        "search.sqlite", "search.sqlite.damaged",
    ]  # fmt: skip
    assert "is damaged" in caplog.text
    images.restart()
    assert images.found("dog") == [names[3]]


def test_a_database_that_is_damaged_while_it_is_used_is_made_again(filled):
    images, names = filled
    for _ in range(3):
        assert images.found("a dog") == [names[3]]
        images.search._database.execute("DROP TABLE images")
        assert images.found("dog") == [names[3]]
    assert images.search._file is None, "in memory after the second time"


def test_a_database_of_another_schema_is_made_again(filled, file):
    images, names = filled
    assert images.found("dog")
    images.search.close()
    with closing(sqlite3.connect(file)) as database:
        database.executescript("DROP TABLE IF EXISTS images; CREATE TABLE images (x); PRAGMA user_version = 99")
    images.restart()
    assert images.found("dog") == [names[3]]


def a_device(tmp_path, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.symlink_to("/dev/full")


def no_directory(tmp_path, file):
    file.parent.write_text("a file where the directory should be")


def a_directory(tmp_path, file):
    file.mkdir(parents=True)


def a_pipe(tmp_path, file):
    file.parent.mkdir(parents=True)
    os.mkfifo(file)


def a_directory_beside_it(tmp_path, file):
    Path(f"{file}-wal").mkdir(parents=True)


@pytest.mark.parametrize("spoil", [a_device, no_directory, a_directory, a_pipe, a_directory_beside_it])
def test_what_lies_in_the_place_of_the_index_is_put_aside(tmp_path, file, caplog, spoil):
    spoil(tmp_path, file)
    images = Images(tmp_path / "out", file)
    names = [images.put(second, image_file(prompt)) for second, prompt in enumerate(PROMPTS)]
    assert images.found("dog") == [names[3]]
    assert images.found("cat") == [names[0], names[4]]
    assert caplog.text.count("it is renamed to") == 1
    assert file.is_file()
    assert not file.is_symlink()


def test_where_no_file_can_be_written_the_index_is_in_memory(tmp_path, caplog):
    images = Images(tmp_path / "out", Path("/proc/self/search.sqlite"))
    names = [images.put(second, image_file(prompt)) for second, prompt in enumerate(PROMPTS)]
    assert images.found("dog") == [names[3]]
    assert images.found("cat") == [names[0], names[4]]
    assert caplog.text.count("the search index cannot be used") == 1


def test_the_folder_of_the_index_may_be_deleted_at_any_time(filled, file):
    images, names = filled
    assert images.found("dog") == [names[3]]
    shutil.rmtree(file.parent)
    new = images.put(30, image_file("another dog"))
    assert images.found("dog") == [names[3], new]
    images.restart()
    assert images.found("dog") == [names[3], new]
    assert os.path.exists(file)

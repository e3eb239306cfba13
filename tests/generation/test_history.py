"""The history: pages, deletion, limits, and a directory that cannot be used."""

import asyncio
import os
import shutil

import pytest
from PIL import Image

from zwatch.engine.parameters import GenerationParameters
from zwatch.errors import RequestError
from zwatch.generation.history import History
from zwatch.generation.image_details import details_of
from zwatch.generation.image_files import encode
from zwatch.generation.request import ImageFormat, parse_generate
from zwatch.generation.search_index import Query
from zwatch.rollout.lifecycle import VersionKey

KEY = VersionKey("v1", "ab" * 32)


def image_file(seed):
    """Return a PNG file as a job makes it."""
    request = parse_generate({"prompt": f"cat {seed}", "seed": seed})
    details = details_of(request, GenerationParameters(f"cat {seed}", "", 32, 16, 8, 0.0, (seed,)), KEY, seed)
    return encode(Image.new("RGB", (32, 16), "red"), details, ImageFormat.PNG, 90)


@pytest.fixture
async def start(bridge, tmp_path):
    """Return a function that opens the history again, after closing the one before."""
    tasks = []

    async def end():
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bridge.run("search", int)  # what was begun before is done

    async def started(max_images=None, max_bytes=None, cache=None, **options):
        await end()
        history = History(bridge, tmp_path / "out", max_images, max_bytes, cache, **options)
        await history.open()
        tasks.append(asyncio.create_task(history.keep_current()))
        return history

    yield started
    await end()


@pytest.fixture
async def history(start):
    return await start()


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "out"


async def filled(history, count, file=b"x"):
    """Save images with the seeds 1 to `count` and return their names, newest first."""
    return (await history.save([(seed, file) for seed in range(1, count + 1)], "png"))[::-1]


def place(directory, name):
    """Write a file as another program does."""
    (directory / name).write_bytes(b"x")


async def test_saved_images_are_read_back_by_their_names(history):
    names = await history.save([(1, b"one"), (2, b"two")], "webp")
    assert [name.partition("_seed")[2] for name in names] == ["1.webp", "2.webp"]
    assert [await history.read(name) for name in names] == [b"one", b"two"]


async def test_a_page_has_the_details_of_each_image(history):
    [name] = await history.save([(7, image_file(7))], "png")
    page = await history.page(10, None)
    [image] = page["images"]
    assert image.pop("created").endswith("Z")
    assert image == {
        "name": name, "url": f"/history/{name}", "version": "v1", "digest": "ab" * 32, "share": None, "trial": None, "seed": 7, "prompt": "cat 7",
        "negative_prompt": "", "width": 32, "height": 16, "steps": 8, "guidance_scale": 0.0, "model": "current",
        "format": "png", "quality": 92, "loras": [], "source": None, "strength": None, "mask_blur": None, "control": None, "control_scale": None, "mask": False, "bytes": len(image_file(7)),
    }  # fmt: skip
    assert (page["next"], page["total"]) == (None, 1)


async def test_pages_follow_each_other_by_next(history):
    names = await filled(history, 5)
    seen, before = [], None
    while True:
        page = await history.page(2, before)
        assert len(page["images"]) <= 2
        assert page["total"] == 5
        seen += [image["name"] for image in page["images"]]
        if (before := page["next"]) is None:
            break
    assert seen == sorted(names, reverse=True)


async def test_the_last_page_has_no_next_even_if_it_is_full(history):
    await filled(history, 2)
    assert (await history.page(2, None))["next"] is None


async def test_a_page_is_full_although_other_programs_removed_files(history, directory):
    names = sorted(await filled(history, 6), reverse=True)
    for name in (names[0], names[1], names[3]):
        (directory / name).unlink()
    page = await history.page(2, None)
    assert [image["name"] for image in page["images"]] == [names[2], names[4]]
    assert page["next"] == names[4]
    assert page["total"] == 3
    rest = await history.page(2, page["next"])
    assert ([image["name"] for image in rest["images"]], rest["next"]) == ([names[5]], None)


async def test_a_page_without_any_file_left_is_empty(history, directory):
    for name in await filled(history, 3):
        (directory / name).unlink()
    assert await history.page(1, None) == {"images": [], "next": None, "offset": 0, "total": 0}


@pytest.mark.parametrize("before", ["", "x", "../x.png", "20260101_000000_seed1.exe"])
async def test_before_must_be_the_name_of_an_image(history, before):
    with pytest.raises(RequestError) as caught:
        await history.page(1, before)
    assert (caught.value.status, caught.value.param) == (400, "before")


async def test_a_file_without_details_is_listed_by_its_name(start, directory):
    directory.mkdir()
    place(directory, "20990101_000000_seed5.png")
    [image] = (await (await start()).page(1, None))["images"]
    assert (image["seed"], image["created"], image["prompt"]) == (5, "2099-01-01T00:00:00Z", None)


@pytest.mark.parametrize("name", ["20260101_000000_seed1.png", "../secret", "x"])
async def test_an_unknown_name_is_neither_read_nor_deleted(history, name):
    for call in (history.read, history.delete):
        with pytest.raises(RequestError) as caught:
            await call(name)
        assert (caught.value.status, caught.value.code) == (404, "not_found")


async def test_delete_removes_one_image(history, directory):
    names = await filled(history, 2)
    await history.delete(names[0])
    assert os.listdir(directory) == [names[1]]
    assert [image["name"] for image in (await history.page(9, None))["images"]] == [names[1]]


async def test_clear_removes_all_images_in_batches_and_other_files_stay(start, directory):
    directory.mkdir()
    for seed in range(1100):
        place(directory, f"20260101_000000_seed{seed}.png")
    history = await start()
    place(directory, "20260101_000001_seed1.png")
    (directory / "notes.txt").write_text("not an image")
    assert await history.clear() == 1101
    assert os.listdir(directory) == ["notes.txt"]
    assert await history.clear() == 0
    assert history.view()["images"] == 0


@pytest.mark.parametrize("call", ["delete", "clear"])
async def test_an_image_that_cannot_be_deleted_is_an_internal_error(history, monkeypatch, call):
    [name] = await filled(history, 1)

    def refuse(path, **options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    with pytest.raises(RequestError, match="Operation not permitted") as caught:
        await (history.delete(name) if call == "delete" else history.clear())
    assert (caught.value.status, caught.value.code) == (500, "internal_error")
    assert history.view()["images"] == 1


async def test_beyond_its_limits_the_oldest_images_are_deleted(start, directory):
    history = await start(max_images=2)
    names = await filled(history, 4)
    assert sorted(os.listdir(directory)) == sorted(names[:2])
    assert history.fault is None
    smaller = await start(max_bytes=1)
    assert os.listdir(directory) == [max(names)]
    assert smaller.view()["bytes"] == 1


async def test_a_directory_that_cannot_be_used_is_a_fault_that_is_logged_once_and_ends(start, directory, caplog):
    directory.write_text("a file where the directory should be")
    history = await start()
    assert "images cannot be kept" in history.fault
    assert await history.save([(1, b"x"), (2, b"x")], "png") == [None, None]
    assert caplog.text.count("images cannot be kept") == 1
    assert history.view()["fault"] == history.fault
    directory.unlink()
    [name] = await history.save([(3, b"x")], "png")
    assert name is not None
    assert history.fault is None
    shutil.rmtree(directory)


async def test_a_saved_image_keeps_its_name_if_no_older_one_can_be_deleted(start, monkeypatch):
    history = await start(max_images=1)
    [first] = await filled(history, 1)
    unlink = os.unlink

    def refuse(path, **options):
        if os.path.basename(path) == first:
            raise PermissionError(1, "Operation not permitted")
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", refuse)
    [second] = await history.save([(2, b"x")], "png")
    assert await history.read(second) == b"x"
    assert history.fault.endswith("old images cannot be deleted: Operation not permitted")


async def test_the_view_counts_images_and_bytes(history, directory):
    names = await filled(history, 3, b"four")
    assert history.view() == {
        "directory": str(directory), "images": 3, "newest": names[0], "bytes": 12, "fault": None,
    }  # fmt: skip


async def test_a_search_has_pages_and_a_total_of_its_own(history):
    names = []
    for seed in range(1, 8):
        names = [*await history.save([(seed, image_file(seed))], "png"), *names]
    await history.delete(names[1])
    left = [names[0], *names[2:]]
    seen, before = [], None
    while True:
        page = await history.page(2, before, Query.of("CAT", "v1", None))
        assert (page["total"], page["indexed"]) == (6, 1.0)
        seen += [image["name"] for image in page["images"]]
        if (before := page["next"]) is None:
            break
    assert seen == left
    assert (await history.page(9, None, Query.of("cat 5", None, 5)))["images"][0]["name"] == names[2]
    assert (await history.page(9, None, Query.of("dog", None, None)))["total"] == 0
    assert "indexed" not in await history.page(9, None, Query.of("", None, None))


async def test_a_search_does_not_find_what_another_program_removed(history, directory):
    names = (await history.save([(seed, image_file(seed)) for seed in (1, 2, 3)], "png"))[::-1]
    assert (await history.page(9, None, Query.of("cat", None, None)))["total"] == 3
    (directory / names[0]).unlink()
    page = await history.page(1, None, Query.of("cat", None, None))
    assert ([image["name"] for image in page["images"]], page["next"], page["total"]) == ([names[1]], names[1], 2)


async def test_what_another_program_removes_is_noticed_although_nobody_asks(start, directory):
    history = await start(look_seconds=0.02)
    names = await filled(history, 2)
    changed = asyncio.Event()
    history.on_change = changed.set
    (directory / names[0]).unlink()
    await asyncio.wait_for(changed.wait(), 60)
    assert (history.view()["images"], history.view()["newest"]) == (1, names[1])


async def test_a_page_says_how_many_images_are_newer_than_its_first(history):
    names = await filled(history, 5)
    page = await history.page(2, None, None, 1)
    assert ([image["name"] for image in page["images"]], page["offset"], page["total"]) == (names[1:3], 1, 5)
    assert (await history.page(2, page["next"]))["offset"] == 3
    await history.delete(names[2])
    assert (await history.page(2, names[2]))["offset"] == 2, "the place after a picture that is gone"
    empty = await history.page(2, None, None, 9)
    assert (empty["images"], empty["offset"], empty["next"]) == ([], 4, None)


@pytest.mark.parametrize("folder", ["cache", "cache/thumbnails"])
async def test_a_cache_on_a_disk_that_is_not_mounted_is_used_when_it_is_there_again(start, tmp_path, folder):
    link, disk, cache = tmp_path / folder, tmp_path / "disk", tmp_path / "cache"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(disk)
    history = await start(cache=cache, look_seconds=0.02)
    changes = []
    history.on_change = lambda: changes.append(history.fault)
    [name] = await history.save([(1, image_file(1))], "png")
    assert (
        history.fault
        == f"{link}: thumbnails and the search index are not kept: it is a symbolic link to {disk}, where nothing is"
    )
    for _ in range(2):
        assert (await history.thumbnail(name)).file
        assert (await history.page(1, None, Query.of("cat", None, None)))["total"] == 1
    assert link.is_symlink()
    disk.mkdir()
    async with asyncio.timeout(60):
        while history.fault is not None or not (cache / "search.sqlite").exists():
            await asyncio.sleep(0.01)
    assert None in changes
    assert (await history.page(1, None, Query.of("cat", None, None)))["total"] == 1
    await history.thumbnail(name)
    assert [path.name.split(".")[0] for path in (cache / "thumbnails").iterdir()] == [name.split(".")[0]]


async def test_images_are_made_searchable_in_the_background(start, directory, tmp_path):
    directory.mkdir()
    for seed in range(120):
        (directory / f"20260101_000000_seed{seed}.png").write_bytes(image_file(seed))
    history = await start(cache=tmp_path / "cache")
    async with asyncio.timeout(60):
        while (await history.page(1, None, Query.of("cat", None, None)))["indexed"] < 1:
            await asyncio.sleep(0.01)
    assert (await history.page(1, None, Query.of("cat 119", None, None)))["total"] == 1
    again = await start(cache=tmp_path / "cache")
    page = await again.page(1, None, Query.of("cat", None, None))
    assert (page["total"], page["indexed"]) == (120, 1.0), "at once after a restart"

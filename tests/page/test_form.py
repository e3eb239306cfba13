"""The form: sizes, seeds, errors beside the field, what is remembered, links, earlier prompts, keys, both languages."""

import json
import re

import pytest
from playwright.async_api import expect

from tests.page.conftest import WAIT
from zwatch.api.page import DIRECTORY as PAGE

expect.set_options(timeout=WAIT)

ENGLISH, CHINESE = {"locale": "en-US"}, {"locale": "zh-CN"}


def spin(page, name):
    """A field for a number."""
    return page.get_by_role("spinbutton", name=name, exact=True)


def prompt(page):
    """The field for the prompt."""
    return page.get_by_role("textbox", name="Prompt", exact=True)


async def sides(page):
    """Return (width, height) as they stand in the form."""
    return int(await spin(page, "Width").input_value()), int(await spin(page, "Height").input_value())


async def in_page(page, code: str):
    """Return the JSON value of an expression over the page's modules."""
    return json.loads(await page.evaluate(f"(async () => JSON.stringify({code}))()"))


async def strings(page):
    """Return the page's strings, [English, Chinese] by key, also those of the parts that are loaded at their first use."""
    text = "".join(path.read_text() for path in PAGE.glob("*.js"))
    for name in sorted(set(re.findall(r"""import\("\./([\w.-]+)"\)""", text))):
        await in_page(page, f"Boolean(await import('/page/{name}'))")
    files = [f"...(await import('/page/{name}.js')).default" for name in ("strings", "strings-gallery")]
    return await in_page(page, f"{{ {', '.join(files)} }}")


async def test_sizes_come_from_proportions_flip_twice_and_half(page):
    await expect(spin(page, "Width")).to_have_value("256")  # the version's own
    await page.get_by_role("button", name="16:9").click()
    assert await sides(page) == (336, 192)
    await page.get_by_role("button", name="Swap width and height").click()
    assert await sides(page) == (192, 336)
    await page.get_by_role("button", name="Twice the size").click()
    assert await sides(page) == (384, 688)
    await page.get_by_role("button", name="Half the size").click()
    assert await sides(page) == (192, 336)
    await page.get_by_role("button", name="1:1").click()
    assert await sides(page) == (256, 256)
    await spin(page, "Width").press("ArrowUp")
    assert await sides(page) == (272, 256)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ("{}", None), ("{ prompt: ' ' }", "prompt"), ("{ width: 100 }", "width"), ("{ height: 4096 }", "height"),
        ("{ width: null }", None), ("{ steps: 0 }", "steps"), ("{ steps: 1.5 }", "steps"), ("{ n: 17 }", "n"),
        ("{ steps: null }", "steps"), ("{ seed: '-1' }", "seed"), ("{ seed: '9223372036854775807' }", None),
        ("{ seed: '9223372036854775807', n: 2 }", "seed"), ("{ guidance_scale: 20.5 }", "guidance_scale"),
        ("{ guidance_scale: 3.5 }", None), ("{ quality: 0 }", "quality"),
    ],
)  # fmt: skip
async def test_each_wrong_setting_is_found(page, changes, field):
    found = await in_page(
        page, "(await import('/page/settings.js').then(({ problems, DEFAULTS }) =>"
        f" Object.keys(problems({{ ...DEFAULTS, prompt: 'x', ...{changes} }}))))",
    )  # fmt: skip
    assert found == ([] if field is None else [field])


async def test_an_error_stands_beside_its_field_and_goes_when_it_is_mended(page):
    await page.get_by_role("button", name="Generate", exact=True).click()
    await expect(prompt(page)).to_be_focused()
    await expect(prompt(page)).to_have_accessible_description("Describe the picture first.")
    await prompt(page).fill("a fox")
    await expect(page.locator("#field-prompt-error")).to_be_hidden()
    await spin(page, "Width").fill("100")
    await page.keyboard.press("Enter")
    await expect(spin(page, "Width")).to_have_accessible_description("A multiple of 16: 96 or 112.")
    await expect(page.get_by_role("list", name="Queue").get_by_role("listitem")).to_have_count(0)
    await spin(page, "Width").fill("112")
    await expect(page.locator("#field-width-error")).to_be_hidden()


async def test_an_error_goes_when_another_control_mends_its_field(page):
    await spin(page, "Width").fill("250")
    await page.keyboard.press("Tab")
    await expect(spin(page, "Width")).to_have_accessible_description("A multiple of 16: 240 or 256.")
    await page.get_by_role("button", name="1:1").click()
    await expect(page.locator("#field-width-error")).to_be_hidden()
    assert await sides(page) == (256, 256)


async def test_a_side_out_of_range_does_not_count_for_the_proportions(page):
    await expect(spin(page, "Width")).to_have_value("256")
    await spin(page, "Width").fill("256512")
    await page.get_by_role("button", name="1:1").click()
    assert await sides(page) == (256, 256)


async def test_a_side_that_is_emptied_shows_the_size_of_the_version_again(page):
    await expect(spin(page, "Width")).to_have_value("256")
    await spin(page, "Width").fill("")
    await expect(spin(page, "Width")).to_have_value("")
    await page.keyboard.press("Tab")
    await expect(spin(page, "Width")).to_have_value("256")


async def test_what_only_the_server_knows_stands_beside_its_field_too(page):
    page.problems.expect("400")
    await prompt(page).fill("x")
    await page.evaluate("document.getElementById('field-prompt').maxLength = 20000")
    await page.route("**/jobs", lambda route: route.fulfill(
        status=400, json={"error": {"message": "steps may be 3 at most with n = 1", "param": "steps", "code": "invalid_value"}}
    ))  # fmt: skip
    await page.keyboard.press("Control+Enter")
    await expect(spin(page, "Steps")).to_have_accessible_description("steps may be 3 at most with n = 1")
    await expect(spin(page, "Steps")).to_be_focused()


async def test_a_seed_is_random_until_it_is_typed_or_locked(page):
    bodies = []

    async def take(route):
        bodies.append(route.request.post_data)
        await route.abort()

    await page.route("**/jobs", take)
    page.problems.expect("ERR_FAILED", "/jobs")
    await prompt(page).fill("x")

    async def press():
        async with page.expect_event("requestfailed"):
            await page.keyboard.press("Control+Enter")
        return re.search(r'"seed":(\d+)', bodies[-1]).group(1)

    first, second = await press(), await press()
    assert first != second
    await page.get_by_role("button", name="Keep this seed").click()
    assert await press() == second
    await page.get_by_role("button", name=re.compile("Next seed")).click()
    assert await press() == str(int(second) + 1)
    await page.get_by_role("button", name="New random seed").click()
    chosen = await spin(page, "Seed").input_value()
    assert chosen != second
    assert await press() == chosen
    await spin(page, "Seed").fill("9223372036854775807")  # not rounded on the way
    assert await press() == "9223372036854775807"
    await spin(page, "Seed").fill("")
    assert await press() not in ("0", "9223372036854775807")


async def test_settings_are_remembered_and_shared_as_a_link(page, new_page, server):
    await prompt(page).fill('ein "Fuchs" & ein See, 狐狸 #1')
    await spin(page, "Steps").fill("12")
    await spin(page, "Seed").fill("5")
    await page.get_by_role("button", name="16:9").click()
    await page.reload()
    await expect(prompt(page)).to_have_value('ein "Fuchs" & ein See, 狐狸 #1')
    await expect(spin(page, "Steps")).to_have_value("12")
    fragment = await in_page(
        page, "(await import('/page/settings.js')).toFragment(JSON.parse(localStorage.getItem('zwatch.settings')))"
    )
    other = await new_page(f"{server.url}/{fragment}")
    await expect(prompt(other)).to_have_value('ein "Fuchs" & ein See, 狐狸 #1')
    await expect(spin(other, "Steps")).to_have_value("12")
    await expect(spin(other, "Seed")).to_have_value("5")
    assert await sides(other) == (336, 192)
    assert "#" not in other.url


async def test_a_link_with_wrong_values_takes_only_what_is_right(new_page, server):
    page = await new_page(f"{server.url}/#prompt=fox&steps=1e9&width=7&format=exe&seed=-3&n=2")
    await expect(prompt(page)).to_have_value("fox")
    await expect(spin(page, "Images")).to_have_value("2")
    await expect(spin(page, "Steps")).to_have_value("8")
    await expect(spin(page, "Width")).to_have_value("256")


async def test_arrow_up_brings_back_earlier_prompts(page):
    await page.route("**/jobs", lambda route: route.abort())
    page.problems.expect("ERR_FAILED", "/jobs")
    for text in ("the first", "the second"):
        await prompt(page).fill(text)
        async with page.expect_request("**/jobs"):
            await page.keyboard.press("Control+Enter")
    await prompt(page).fill("a draft")
    for key, text in [("ArrowUp", "the second"), ("ArrowUp", "the first"), ("ArrowUp", "the first"),
                      ("ArrowDown", "the second"), ("ArrowDown", "a draft")]:  # fmt: skip
        await prompt(page).press(key)
        await expect(prompt(page)).to_have_value(text)


async def walk(page, *keys):
    """Press keys in the prompt, and return its text."""
    for key in keys:
        await prompt(page).press(key)
        await page.evaluate("new Promise(requestAnimationFrame)")
    return await prompt(page).input_value()


async def keep_prompts(page, *texts):
    """Open the page again with these prompts used before."""
    await page.evaluate("texts => localStorage.setItem('zwatch.prompts', JSON.stringify(texts))", texts)
    await page.reload()


async def test_a_draft_is_found_again_after_an_earlier_prompt_was_edited(page):
    await keep_prompts(page, "used before")
    await prompt(page).fill("a draft")
    assert await walk(page, "ArrowUp") == "used before"
    await prompt(page).press("!")
    assert await walk(page, "ArrowUp") == "a draft"
    assert await walk(page, "ArrowDown") == "used before!"
    await page.reload()
    await prompt(page).fill("")
    assert await walk(page, "ArrowUp") == "a draft"


async def test_a_prompt_that_other_settings_replace_is_found_again(page):
    await prompt(page).fill("not sent yet")
    await page.evaluate("location.hash = 'prompt=from%20a%20link'")
    await expect(prompt(page)).to_have_value("from a link")
    assert await walk(page, "ArrowUp") == "not sent yet"


async def test_prompts_of_two_windows_are_all_kept(page):
    other = await page.context.new_page()
    await other.goto(page.url)
    for window in (page, other):
        await window.route("**/jobs", lambda route: route.abort())
    page.problems.expect("ERR_FAILED", "/jobs")
    for window, text in ((page, "in the first"), (other, "in the second")):
        await prompt(window).fill(text)
        async with window.expect_request("**/jobs"):
            await window.keyboard.press("Control+Enter")
    # What another window writes comes a moment later.
    await page.wait_for_function("JSON.parse(localStorage.getItem('zwatch.prompts')).length === 2")
    assert await in_page(page, "JSON.parse(localStorage.getItem('zwatch.prompts'))") == [
        "in the first",
        "in the second",
    ]


async def test_arrows_move_the_caret_between_lines_first(page):
    await keep_prompts(page, "used before")
    await prompt(page).fill("line one\nline two")
    await prompt(page).evaluate("area => area.setSelectionRange(9, 9)")  # the beginning of the second line
    assert await walk(page, "ArrowUp") == "line one\nline two"
    assert await walk(page, "ArrowUp") == "used before"


async def test_arrows_of_an_input_method_leave_the_prompt_alone(page):
    await keep_prompts(page, "used before")
    await prompt(page).fill("ni")
    key = "new KeyboardEvent('keydown', { key: 'ArrowUp', isComposing: true, bubbles: true, cancelable: true })"
    await prompt(page).evaluate(f"area => {{ area.setSelectionRange(2, 2); area.dispatchEvent({key}) }}")
    await page.evaluate("new Promise(requestAnimationFrame)")
    await expect(prompt(page)).to_have_value("ni")


@pytest.mark.parametrize("keys", [["Control", "Enter"], ["Enter"]])
async def test_a_key_that_is_held_adds_one_job(page, keys):
    asked = []
    await page.route("**/jobs", lambda route: asked.append(route.request.url) or route.abort())
    page.problems.expect("ERR_FAILED", "/jobs")
    await prompt(page).fill("held")
    await spin(page, "Steps").focus()
    for key in [*keys, "Enter", "Enter", "Enter"]:
        await page.keyboard.down(key)
    for key in keys:
        await page.keyboard.up(key)
    await expect(page.get_by_text("The server does not answer. Generate works")).to_be_visible()
    assert len(asked) == 1


async def test_the_prompt_grows_with_its_text(page):
    before = (await prompt(page).bounding_box())["height"]
    await prompt(page).fill("line\n" * 8)
    assert (await prompt(page).bounding_box())["height"] > before


async def test_a_question_mark_shows_the_keys_and_typed_it_does_not(page):
    await prompt(page).press("?")
    await expect(prompt(page)).to_have_value("?")
    await expect(page.get_by_role("dialog")).to_have_count(0)
    await page.get_by_role("heading", name="zwatch").click()
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog", name="Keys")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def test_a_browser_in_chinese_gets_the_page_in_chinese(new_page, server):
    page = await new_page(server.url + "/", **CHINESE)
    await expect(page.get_by_role("button", name="生成", exact=True)).to_be_visible()
    await expect(page.get_by_role("status")).to_contain_text("模型：v1")  # noqa: RUF001
    assert await page.evaluate("document.documentElement.lang") == "zh-Hans"
    text = await page.evaluate("document.body.innerText")
    assert set(re.findall(r"[A-Za-z]{3,}", text)) <= {"zwatch", "PNG", "JPEG", "WEBP"} | set(
        re.findall("[a-z]+", "feca bdfe")
    )


async def test_both_languages_have_the_same_strings_with_the_same_parts(page):
    for key, texts in (await strings(page)).items():
        assert len(texts) == 2, key
        english, chinese = ({*re.findall(r"\{(\w+)\}", text.rpartition("|")[2])} for text in texts)
        assert english == chinese, key


async def test_every_string_that_is_used_is_there(page):
    used = set()
    for path in [*PAGE.glob("*.js"), PAGE / "index.html"]:
        used |= set(re.findall(r"""\bt\(\s*["']([\w.]+)["']|data-t(?:-\w+)?="([\w.]+)\"""", path.read_text()))
    known = await strings(page)
    missing = {one or other for one, other in used} - known.keys()
    assert not missing

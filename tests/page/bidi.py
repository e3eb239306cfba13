"""A small client of WebDriver BiDi, by which Firefox is driven: Playwright drives only a Firefox of its own."""

import asyncio
import itertools
import json
import os
import re
import shutil
import subprocess
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

FIREFOX = os.environ.get("FIREFOX") or shutil.which("firefox-esr") or shutil.which("firefox")
WAIT = 60.0
"""Seconds: for a loaded machine, never a measurement."""
KEYS = {"Enter": "\ue007", "Escape": "\ue00c", "Control": "\ue009", "ArrowLeft": "\ue012", "ArrowRight": "\ue014"}
"""Keys without a character, by the code that WebDriver gives them."""


class Tab:
    """One page in Firefox, and the problems that it met: errors and warnings of its console, violations of its policy."""

    def __init__(self, firefox: "Firefox", context: str) -> None:
        self.call, self.context, self.problems = firefox.call, context, []
        firefox.tabs[context] = self

    async def run(self, function: str, *arguments: object):
        """Call a JavaScript function with values of JSON, and return its value, or what its promise gives."""
        texts = [{"type": "string", "value": json.dumps(one)} for one in arguments]
        found = await self.call(
            "script.callFunction", target={"context": self.context}, arguments=texts, awaitPromise=True,
            functionDeclaration="async (...texts) => "
            f"JSON.stringify(await ({function})(...texts.map((one) => JSON.parse(one))) ?? null)",
        )  # fmt: skip
        assert found["type"] == "success", found["exceptionDetails"]["text"]
        return json.loads(found["result"]["value"])

    async def until(self, function: str, *arguments: object):
        """Wait until a JavaScript function returns something true, and return it."""
        end = asyncio.get_running_loop().time() + WAIT
        while not (found := await self.run(function, *arguments)):
            now = await self.run("() => document.body.innerText")
            assert asyncio.get_running_loop().time() < end, f"waited for {function} {arguments}:\n{now}"
            await asyncio.sleep(0.05)
        return found

    async def sees(self, selector: str, pattern: str) -> None:
        """Wait until a visible element that matches the selector has a text that matches the pattern."""
        await self.until(
            "(selector, pattern) => [...document.querySelectorAll(selector)]"
            ".some((one) => one.checkVisibility() && new RegExp(pattern).test(one.innerText))", selector, pattern,
        )  # fmt: skip

    async def press(self, *keys: str) -> None:
        """Press keys one after another; "Control+Enter" is pressed together. A long text is typed key by key."""
        actions = []
        for chord in keys:
            codes = [KEYS.get(key, key) for key in (chord.split("+") if len(chord) > 1 else [chord])]
            actions += [{"type": "keyDown", "value": code} for code in codes]
            actions += [{"type": "keyUp", "value": code} for code in reversed(codes)]
        source = {"type": "key", "id": "keyboard", "actions": actions}
        await self.call("input.performActions", context=self.context, actions=[source])

    async def click(self, selector: str, text: str = "") -> None:
        """Press the first visible element of a selector, with a text or name, in its middle by the mouse."""
        x, y = await self.until(
            """(selector, text) => {
                const named = (one) => (one.getAttribute("aria-label") ?? one.innerText).trim() === text;
                const found = [...document.querySelectorAll(selector)].find((one) => one.checkVisibility() && (!text || named(one)));
                found?.scrollIntoView({ block: "center" });
                const box = found?.getBoundingClientRect();
                return box && box.width && [box.x + box.width / 2, box.y + box.height / 2];
            }""", selector, text,
        )  # fmt: skip
        move = {"type": "pointerMove", "x": int(x), "y": int(y)}
        press = [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
        source = {"type": "pointer", "id": "mouse", "actions": [move, *press]}
        await self.call("input.performActions", context=self.context, actions=[source])

    async def fill(self, selector: str, text: str) -> None:
        """Select what stands in a field, and type."""
        await self.run("(selector) => document.querySelector(selector).select()", selector)
        await self.press(*text)


class Firefox:
    """A running Firefox; `tab` opens a page in it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.tabs: dict[str, Tab] = {}
        self._socket, self._numbers, self._waiting = socket, itertools.count(1), {}

    async def call(self, method: str, **parameters: object) -> dict:
        """Send a command, and return its result."""
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": parameters})
        return await asyncio.wait_for(answer, WAIT)

    async def tab(self, url: str) -> Tab:
        """Open a page in a new tab."""
        tab = Tab(self, (await self.call("browsingContext.create", type="tab"))["context"])
        await self.call("browsingContext.navigate", context=tab.context, url=url, wait="complete")
        return tab

    async def listen(self) -> None:
        """Take answers and events until the connection ends."""
        async for message in self._socket:
            found = message.json()
            if found["type"] == "event":
                entry = found["params"]
                tab = self.tabs.get(entry["source"].get("context"))
                if tab and entry["level"] in ("error", "warn"):
                    tab.problems.append(f"{entry['type']}: {entry['text']}")
            elif not (answer := self._waiting.pop(found["id"])).done():
                if found["type"] == "error":
                    answer.set_exception(AssertionError(f"{found['error']}: {found['message']}"))
                else:
                    answer.set_result(found["result"])


@asynccontextmanager
async def running_firefox(profile: Path):
    """Start Firefox without a window, in English, with a new profile in this directory."""
    profile.mkdir()
    (profile / "user.js").write_text('user_pref("intl.accept_languages", "en-US");\n')
    log = profile / "log"
    command = [FIREFOX, "--headless", "--no-remote", "--profile", str(profile), "--remote-debugging-port", "0"]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, "HOME": str(profile)})
    try:
        async with asyncio.timeout(WAIT):
            while not (found := re.search(r"WebDriver BiDi listening on (ws://\S+)", log.read_text(errors="replace"))):
                assert process.poll() is None, log.read_text()
                await asyncio.sleep(0.05)
        async with aiohttp.ClientSession() as http, http.ws_connect(found[1] + "/session", max_msg_size=0) as socket:
            firefox = Firefox(socket)
            listening = asyncio.create_task(firefox.listen())
            await firefox.call("session.new", capabilities={})
            await firefox.call("session.subscribe", events=["log.entryAdded"])
            yield firefox
            listening.cancel()
    finally:
        process.kill()  # its profile is thrown away
        process.wait(WAIT)

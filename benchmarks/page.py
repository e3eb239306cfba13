"""How fast the page is: its first paint, beside that of the smallest page of the same server; and its previews.

    python benchmarks/page.py [--models models] [--loads 30] [--jobs 10] [--out FILE]

In headless Chromium on the machine that serves, in turn:

- first paint: from the navigation to the first contentful paint, of the page and of `/health/live`, a line of JSON;
- at a start: the first paint of a page that is opened when the server begins to listen, while torch is still imported;
- previews: from the event with a preview to the frame that shows it;
- idle: the requests in ten seconds in which nobody does anything.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from common import RESULTS, ROOT, Json, machine, now, packages, quantile
from playwright.sync_api import Browser, Page, sync_playwright
from served import Server

IDLE_SECONDS = 10
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"
RECORDER = """
window.previews = [];
const onmessage = Object.getOwnPropertyDescriptor(MessagePort.prototype, "onmessage");
Object.defineProperty(MessagePort.prototype, "onmessage", { ...onmessage, set(listener) {
    onmessage.set.call(this, (message) => {
        const [event, text] = message.data, begun = performance.now();
        listener.call(this, message);
        if (event !== "job") return;
        const job = JSON.parse(text), image = document.getElementById("result");
        if (job.preview && image.src === job.preview)
            image.decode().then(() => requestAnimationFrame(() => setTimeout(
                () => window.previews.push(performance.now() - begun))), () => {});
    });
} });
"""
"""Notes, in milliseconds, how long each preview takes from its event, which the worker passes on, to the end of the frame that
shows it. The policy is bypassed, because it forbids what Playwright waits with."""


def first_paint(page: Page, url: str) -> float:
    """Load a URL, and return the milliseconds until its first contentful paint."""
    page.goto(url)
    page.wait_for_function(f"({PAINT}) !== null")
    return float(page.evaluate(PAINT))


def paints(browser: Browser, url: str, loads: int) -> dict[str, list[float]]:
    """Return the first paints of the page and of the smallest page, in turn; each load is that of a new visitor."""
    found: dict[str, list[float]] = {"/": [], "/health/live": []}
    for _ in range(loads):
        for path, times in found.items():
            context = browser.new_context(bypass_csp=True)
            times.append(first_paint(context.new_page(), url + path))
            context.close()
    return found


def previews(page: Page, jobs: int) -> list[float]:
    """Make pictures on the page, and return what the recorder noted."""
    page.get_by_role("textbox", name="Prompt").fill("a cat wearing sunglasses")
    page.get_by_role("spinbutton", name="Steps").fill("30")
    generate = page.get_by_role("button", name="Generate")
    for number in range(jobs):
        generate.click()
        page.wait_for_function(f"document.querySelectorAll('#strip li').length > {number}", timeout=120_000)
    return [float(one) for one in page.evaluate("window.previews")]


def idle_requests(page: Page) -> int:
    """Return how many requests a page sends while nobody does anything."""
    page.wait_for_timeout(2000)
    sent: list[str] = []
    page.on("request", lambda request: sent.append(request.url))
    page.wait_for_timeout(IDLE_SECONDS * 1000)
    return len(sent)


def measure(models: Path, work: Path, chromium: str, loads: int, jobs: int) -> Json:
    """Return the figures."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        browser.new_context(bypass_csp=True).new_page().goto("about:blank")
        with Server(models, work, "auto") as server:
            url = server.url
            opened = time.monotonic() - server.begun
            at_start = first_paint(browser.new_context(bypass_csp=True).new_page(), url)
            loading = server.get("/status")["serving"] is None
            server.wait(lambda: server.get("/status")["serving"], "it serves", 300.0, 0.1)
            found = paints(browser, url, loads)
            page = browser.new_context(bypass_csp=True).new_page()
            page.add_init_script(RECORDER)
            page.goto(url)
            shown = previews(page, jobs)
            idle = idle_requests(page)
    paint = {path: summary_ms(times) for path, times in found.items()}
    return {
        "first_paint_ms": paint,
        "ratio": round(paint["/"]["median"] / paint["/health/live"]["median"], 2),
        "at_start": {
            "listens_s": round(opened, 3), "first_paint_ms": round(at_start, 1), "nothing_served_yet": loading,
        },
        "preview_ms": summary_ms(shown),
        "idle_requests": idle,
    }  # fmt: skip


def summary_ms(times: list[float]) -> Json:
    """Return the number of some milliseconds, their median, 99th percentile and longest."""
    return {
        "n": len(times), "median": round(statistics.median(times), 1), "p99": round(quantile(times, 0.99), 1),
        "longest": round(max(times), 1),
    }  # fmt: skip


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--chromium", default=shutil.which("chromium") or "chromium")
    parser.add_argument("--loads", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=10)
    parser.add_argument("--out", type=Path, default=RESULTS / "page.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ZWATCH_OUTPUT_DIR"] = str(Path(folder, "output"))
        models = Path(folder, "models")
        shutil.copytree(options.models, models, symlinks=True)
        figures = measure(models, Path(folder), options.chromium, options.loads, options.jobs)
        found = {
            "when": now(), "machine": machine(Path(folder)), "packages": packages("torch", "aiohttp", "playwright"),
        } | figures  # fmt: skip
    text = json.dumps(found, indent=2)
    print(text)
    options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()

"""The report in a real browser, over the DevTools protocol: clicks, keys, widths, themes; no error, no request."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitwright import reporting
from reporting_example import HOSTILE, example_run, gate_files, selfprune_files

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe",
)  # fmt: skip
DEADLINE = 60.0  # seconds for any answer; a slow machine is not an error


class Browser:
    """One page in a headless Chromium; messages are JSON ended by a zero byte, on pipes 3 and 4."""

    def __init__(self, folder: str) -> None:
        ours_read, theirs_write = os.pipe()
        theirs_read, ours_write = os.pipe()

        def give_pipes() -> None:
            read, written = os.dup(theirs_read), os.dup(theirs_write)  # 3 and 4 may be in use as they are
            os.dup2(read, 3)
            os.dup2(written, 4)

        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(
            command, close_fds=False, preexec_fn=give_pipes, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs_read)
        os.close(theirs_write)
        self.read, self.write, self.buffer, self.count = ours_read, ours_write, b"", 0
        self.session, self.events = "", []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and waits for its answer; what happens meanwhile is kept in `events`."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + DEADLINE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self.read, 1 << 20) if ready else b""
            assert data, "the browser does not answer"
            self.buffer += data
        line, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(line)

    def open(self, path: Path, width: int = 1200, dark: bool = False) -> None:
        self.events = []
        self("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 700)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", media="screen", features=[scheme])
        self("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self._next())

    def js(self, expression: str) -> Any:
        """The value of an expression, or of the promise it gives."""
        done = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def press(self, key: str, code: int) -> None:
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def complaints(self) -> list[str]:
        """Console errors, uncaught exceptions, blocked content."""
        bad = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        return [json.dumps(e["params"]) for e in self.events if e.get("method") in bad]

    def requests(self) -> list[str]:
        """What was loaded beside the page itself and what is inside it."""
        urls = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in urls[1:] if not url.startswith("data:")]

    def screenshot(self, path: Path, height: int | None = None) -> None:
        box = self("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": box["width"], "height": height or box["height"], "scale": 1}
        shot = self("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.read)
        os.close(self.write)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        found = Browser(folder)
        yield found
        found.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = example_run(tmp_path_factory.mktemp("browser") / "mynet", 8)
    return reporting.report(run.path, run.file("report.html"))


FITS = "document.documentElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth"
COLUMN = "[...document.querySelectorAll('#layer-table tbody tr')].map(r => r.cells[{}].dataset.v)"


@pytest.mark.slow
def test_everything_that_can_be_clicked(browser: Browser, written: Path) -> None:
    browser.open(written)
    assert browser.js("document.querySelector('.verdict').innerText").split() == ["\u2713", "PASS"]
    # sort by ms: up, then down, unknown values last in both
    sort = "document.querySelectorAll('#layer-table th button')[{}]"
    for column, expected in ((3, float), (1, float)):
        values = browser.js(COLUMN.format(column))
        known = sorted(expected(v) for v in values if v)
        for direction in (known, known[::-1]):
            browser.js(sort.format(column) + ".click()")
            now = browser.js(COLUMN.format(column))
            assert [expected(v) for v in now if v] == direction
            assert not any(now[len(direction) :])
        assert browser.js(sort.format(column) + ".closest('th').getAttribute('aria-sort')") == "descending"
    # a strip leads to its row, also after sorting
    browser.js("document.querySelectorAll('.strip a')[2].click()")
    assert browser.js("location.hash") == "#layer-2"
    assert browser.js("document.querySelector('tr:target').id") == "layer-2"
    # theme: auto, light, dark, auto
    seen = []
    for _ in range(3):
        browser.js("document.getElementById('theme').click()")
        seen.append(
            browser.js("[document.documentElement.dataset.theme, getComputedStyle(document.body).backgroundColor]")
        )
    assert [s[0] for s in seen] == ["light", "dark", None] and seen[0][1] != seen[1][1] and seen[2][1] == seen[0][1]
    # copy
    browser.js("document.querySelector('#again button.copy').click()")
    said = "new Promise(r => setTimeout(() => r(document.querySelector('#again button.copy').textContent), 200))"
    assert browser.js(said) == "Copied"
    # details, tooltip by focus, and nothing else happened
    browser.js("document.querySelector('#worth summary').click()")
    assert browser.js("document.querySelector('#worth details').open")
    browser.js("document.querySelector('#worth summary').focus()")
    browser.press("Tab", 9)  # to the first mark of the next chart; the page may scroll there
    assert browser.js("document.activeElement.closest('svg') !== null")
    assert browser.js("document.getElementById('tip').style.opacity") == "1"
    assert "its accuracy was not measured" in browser.js("document.getElementById('tip').textContent")
    assert browser.js("window.xss === undefined && document.querySelectorAll('script').length") == 2
    assert HOSTILE in browser.js("document.getElementById('layers').innerText")
    assert browser.complaints() == [] and browser.requests() == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("layers", [0, 1, 8, 200])
def test_every_size_in_every_theme(browser: Browser, tmp_path: Path, layers: int, width: int, dark: bool) -> None:
    run = example_run(tmp_path / "mynet", layers)
    browser.open(reporting.report(run.path, run.file("report.html")), width, dark)
    assert browser.js(FITS), "the page scrolls sideways"
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.js(FITS), "with its details open the page scrolls sideways"
    background = browser.js("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(15, 19, 24)" if dark else "rgb(255, 255, 255)")
    assert browser.js(_CONTRAST) == []
    assert browser.complaints() == [] and browser.requests() == []


@pytest.mark.parametrize("width", [390, 320])
def test_no_number_is_broken_over_two_lines(browser: Browser, written: Path, width: int) -> None:
    browser.open(written, width)
    browser.js(
        "document.querySelectorAll('.bars .n').forEach(e => { if (e.textContent.trim()) e.textContent = '0.0642'; })"
    )
    assert browser.js("document.querySelectorAll('.bars .n').length") > 4
    assert browser.js(_BROKEN) == [] and browser.js(FITS)


# Numbers of a page whose digits stand on more than one line.
_BROKEN = """(() => {
  const bad = [], texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode;
    if (!node.parentElement.checkVisibility()) continue;
    for (const found of node.data.matchAll(/[0-9][0-9.,]*[0-9]x?/g)) {
      const range = document.createRange();
      range.setStart(node, found.index); range.setEnd(node, found.index + found[0].length);
      if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) bad.push(found[0]);
    }
  }
  return bad; })()"""


# Text whose contrast with what lies behind it is below 4.5, by the usual formula; pictures and unseen text excepted.
_CONTRAST = """(() => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = color => { context.clearRect(0, 0, 1, 1); context.fillStyle = color; context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data]; };
  const light = c => { const v = c.slice(0, 3).map(x => { x /= 255; return x <= .03928 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4; });
    return .2126 * v[0] + .7152 * v[1] + .0722 * v[2]; };
  const behind = e => { for (; e; e = e.parentElement) { const b = rgb(getComputedStyle(e).backgroundColor); if (b[3] > 200) return b; }
    return [255, 255, 255, 255]; };
  const bad = new Set();
  for (const e of document.querySelectorAll('main *, header *, nav *')) {
    if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    const style = getComputedStyle(e);
    if (style.fontSize === '0px' || !e.getClientRects().length) continue;
    const [a, b] = [light(rgb(style.color)), light(behind(e))].sort((p, q) => q - p);
    if ((a + .05) / (b + .05) < 4.5) bad.add(e.tagName + '.' + e.className + ' ' + ((a + .05) / (b + .05)).toFixed(2));
  }
  return [...bad];
})()"""


@pytest.mark.slow
def test_keyboard_alone_is_enough(browser: Browser, written: Path) -> None:
    browser.open(written)
    seen = []
    for _ in range(40):
        browser.press("Tab", 9)
        seen.append(browser.js("document.activeElement.getAttribute('href') || document.activeElement.id"))
    assert "#worth" in seen and "theme" in seen
    browser.js("document.querySelectorAll('#layer-table th button')[3].focus()")
    browser.press("Enter", 13)
    values = [float(v) for v in browser.js(COLUMN.format(3))]
    assert values == sorted(values)


@pytest.mark.slow
def test_print_opens_the_details_and_closes_them_again(browser: Browser, written: Path) -> None:
    browser.open(written)
    browser.js("dispatchEvent(new Event('beforeprint'))")
    assert browser.js("[...document.querySelectorAll('details')].every(d => d.open)")
    browser("Emulation.setEmulatedMedia", media="print", features=[])
    assert browser.js("getComputedStyle(document.querySelector('nav')).display") == "none"
    browser.js("dispatchEvent(new Event('afterprint'))")
    assert not browser.js("document.querySelector('#worth details').open")
    assert base64.b64decode(browser("Page.printToPDF")["data"]).startswith(b"%PDF")


@pytest.mark.slow
def test_an_empty_run_and_a_comparison(browser: Browser, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/experiment.toml").write_text("seed = 0\n", encoding="utf-8")
    for i in range(8):
        run = example_run(tmp_path / f"all/{'long-name-' * 5}{i}", 20)
        run.write_text("experiment.toml", f"[model]\nwidth = {i}\n")
    pages = [reporting.report(tmp_path / "empty", tmp_path / "empty.html")]
    pages += [reporting.compare(sorted((tmp_path / "all").glob("*"))[:n], tmp_path / f"{n}.html") for n in (3, 8)]
    for path in pages:
        for width in (1200, 390):
            browser.open(path, width)
            assert browser.js(FITS), f"{path.name} scrolls sideways at {width}"
            assert browser.js(_CONTRAST) == []
            assert browser.complaints() == [] and browser.requests() == []


@pytest.mark.slow
def test_plotly_draws_under_the_policy(browser: Browser, written: Path, tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    browser.open(reporting.report(written.parent, tmp_path / "i.html", interactive=True))
    assert browser.js("document.querySelectorAll('.plot .main-svg').length") >= 3
    assert browser.js(FITS) and browser.requests() == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("gates", [1, 60])
def test_gates_at_every_size(browser: Browser, tmp_path: Path, gates: int, width: int, dark: bool) -> None:
    run = example_run(tmp_path / "mynet", max(8, gates + 2))
    gate_files(run, gates)
    browser.open(reporting.report(run.path, run.file("report.html")), width, dark)
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.js(FITS), "the page scrolls sideways"
    assert browser.js("document.querySelectorAll('#gates .worst img').length") == 12
    assert browser.js(_CONTRAST) == []
    assert browser.complaints() == [] and browser.requests() == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("layers", [1, 60])
def test_connections_at_every_size(browser: Browser, tmp_path: Path, layers: int, width: int, dark: bool) -> None:
    run = example_run(tmp_path / "mynet", max(8, layers))
    selfprune_files(run, layers)
    browser.open(reporting.report(run.path, run.file("report.html")), width, dark)
    browser.js("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    assert browser.js(FITS), "the page scrolls sideways"
    assert browser.js("document.querySelectorAll('#connections svg[role=group]').length") == 5
    assert browser.js(_CONTRAST) == []
    assert browser.complaints() == [] and browser.requests() == []

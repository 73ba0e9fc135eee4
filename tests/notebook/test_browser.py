"""Every notebook as users see it: in headless Chromium, in the light and the dark theme.

The notebooks are shown as nbval executed them; the first one is run in the lab itself, with Run All.

Screenshots of both themes go to MEMKIT_ARTEFACTS; without it none are made, because no test reads them (4 s of CPU).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest
from nbformat.sign import NotebookNotary
from nbval_run import Executed
from notebook_policy import METADATA
from processes import linux
from servers import NO_FSYNC
from test_lab import Lab
from test_notebooks import NOTEBOOKS

from memkit.notebook.demo import QUESTIONS
from memkit.notebook.html_report import write_html_report
from memkit.server import RedisServer

pytestmark = linux
WITH_FIGURE = next(path for path in NOTEBOOKS if path.stem == "05_the_five_minute_bug")
WITHIN_MS = 300_000
WIDTH, TALLEST = 1280, 14_000
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]
LAB_CONFIG = {"LabApp": {"expose_app_in_browser": True}}
# Every cell is in the page, wherever it is scrolled to.
TRACKER = {"windowingMode": "none"}
READY = "window.jupyterapp && window.jupyterapp.restored.then(() => true)"
# The outputs of a notebook that is opened are rendered after it is ready.
LOOK = """async ({path, run}) => {
    const app = window.jupyterapp
    const kernelPreference = run ? {} : {shouldStart: false, canStart: false}
    const panel = await app.commands.execute('docmanager:open', {path, kernelPreference})
    await panel.context.ready
    if (run) {
        await panel.sessionContext.ready
        await app.commands.execute('notebook:run-all-cells')
    }
    const areas = panel.content.widgets.map(cell => cell.outputArea).filter(area => area)
    const outputs = area => [...area.node.querySelectorAll('.jp-OutputArea-output')]
    const rendered = area => outputs(area).filter(output => output.childNodes.length).length
    // Not at each frame, which would have to be drawn.
    const later = resolve => setTimeout(resolve, 100)
    while (areas.some(area => rendered(area) < area.model.length)) await new Promise(later)
    const images = [...panel.content.node.querySelectorAll('.jp-OutputArea-output img, .jp-OutputArea-output svg')]
    const named = image => (image.getAttribute('alt') || image.getAttribute('aria-label') || '').trim()
    return {
        cells: [...panel.content.model.cells].filter(cell => cell.type == 'code').map(cell => cell.toJSON()),
        images: images.map(named),
        text: [...panel.content.node.querySelectorAll('.jp-OutputArea-output')].map(out => out.innerText).join('\\n'),
    }
}"""
SHOW = """async path => {
    const panel = await window.jupyterapp.commands.execute('docmanager:open', {path})
    panel.content.activeCellIndex = 0
    panel.content.node.querySelector('.jp-WindowedPanel-outer').scrollTop = 0
    return panel.content.node.querySelector('.jp-WindowedPanel-viewport').scrollHeight
}"""
THEME = """async theme => {
    await window.jupyterapp.commands.execute('apputils:change-theme', {theme})
    while (document.querySelector('#jupyterlab-splash')) await new Promise(requestAnimationFrame)
}"""
COLOURS = """async path => {
    const panel = await window.jupyterapp.commands.execute('docmanager:open', {path})
    const figure = panel.content.node.querySelector('.memkit-figure')
    const ink = figure.querySelector('svg [style*="fill: var(--memkit-1a1a1a"]')
    const page = getComputedStyle(document.body).getPropertyValue('--jp-layout-color0')
    return [getComputedStyle(figure).backgroundColor, getComputedStyle(ink).fill, page]
}"""
TIMES_IN_TILES = """[...document.querySelectorAll('.numbers time')].every(
    time => time.getBoundingClientRect().right <= time.closest('dd').getBoundingClientRect().right)"""
# Playwright waits for a promise as long as it takes.
IN_TIME = "value => Promise.race([({script})(value), new Promise((_, no) => setTimeout(no, {ms}, new Error('hangs')))])"


@dataclass(frozen=True)
class Seen:
    """A notebook after Run All: code cells with outputs, each image's alt text, all text."""

    cells: list[dict[str, Any]]
    images: list[str]
    text: str


class Elsewhere:
    """A proxy that answers no request: each one would have left this machine."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            connection, _ = self._socket.accept()
            with connection:
                self.asked.append(connection.recv(1024))

    def environment(self) -> dict[str, str]:
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), f"http://127.0.0.1:{self.port}")
        return proxies | {"no_proxy": "127.0.0.1,localhost"}


@pytest.fixture(scope="module")
def visitor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visitor]:
    playwright = _playwright()
    elsewhere = Elsewhere()
    folder = tmp_path_factory.mktemp("browser")
    configure(folder)
    artefacts = os.environ.get("MEMKIT_ARTEFACTS")
    shots = Path(artefacts, "screenshots") if artefacts else None
    if shots:
        shots.mkdir(parents=True, exist_ok=True)
    lab = Lab(folder, env=elsewhere.environment())
    try:
        with playwright() as driver:
            visitor = Visitor(driver, lab, shots, folder, elsewhere)
            with closing(visitor.notary.store):
                yield visitor
            if shots:
                visitor.look_again_in_the_dark()
    finally:
        lab.end()


def _playwright() -> Any:
    """Return playwright's entry point; skip with the reason if something is missing, and fail in CI."""
    missing = pytest.fail if os.environ.get("CI") else pytest.skip
    if not CHROMIUM:
        missing("no Chromium on PATH: apt install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no playwright: pip install playwright")
    return sync_playwright


def configure(folder: Path) -> None:
    """Write the settings of a separate Jupyter: see own_jupyter."""
    settings = folder / "jupyter_config_dir/lab/user-settings/@jupyterlab/notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps(TRACKER))
    (folder / "jupyter_config_dir/jupyter_lab_config.json").write_text(json.dumps(LAB_CONFIG))


class Visitor:
    """A browser in the lab."""

    def __init__(self, driver: Any, lab: Lab, shots: Path | None, home: Path, elsewhere: Elsewhere) -> None:
        self.shots = shots
        self.notebooks = home / "notebooks"
        self.notary = NotebookNotary(data_dir=str(home / "jupyter_data_dir"))
        self.seen: list[str] = []
        self.left_for: list[object] = elsewhere.asked
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, env=dict(os.environ) | {"XDG_CONFIG_HOME": str(home)}
        )
        self.page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        self.page.set_default_timeout(WITHIN_MS)
        self.page.on("request", self._asked)
        self.page.goto(f"{lab.url}lab?token={lab.token}")
        self.page.wait_for_function(READY)

    def _asked(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.left_for.append(request.url)

    def look(self, name: str, *, run: bool) -> Seen:
        seen = Seen(**self.evaluate(LOOK, {"path": name, "run": run}))
        self.seen.append(name)
        self._shoot(name, "light")
        return seen

    def look_again_in_the_dark(self) -> None:
        """Switch once: JupyterLab loads a theme's style sheets and fades."""
        self.evaluate(THEME, "JupyterLab Dark")
        for name in self.seen:
            self._shoot(name, "dark")

    def _shoot(self, name: str, theme: str) -> None:
        if not self.shots:
            return
        height = self.evaluate(SHOW, name)
        self.page.set_viewport_size({"width": WIDTH, "height": min(height + 150, TALLEST)})
        self.page.screenshot(path=self.shots / f"{name.removesuffix('.ipynb')}-{theme}.png")

    def evaluate(self, script: str, value: Any) -> Any:
        return self.page.evaluate(IN_TIME.format(script=script, ms=WITHIN_MS), value)


def wrong_with(seen: Seen) -> list[str]:
    errors = [out for cell in seen.cells for out in cell["outputs"] if out["output_type"] == "error"]
    return [
        *(f"code cell {number} did not run" for number, cell in enumerate(seen.cells) if not cell["execution_count"]),
        *("\n".join(error["traceback"]) for error in errors),
        *(f"an image whose text is {text!r}" for text in seen.images if len(text) < 20),
        *(f"a message of somebody's: {text}" for text in QUESTIONS if len(text) > 8 and text in seen.text),
    ]


def look_at_executed(notebook: Path, visitor: Visitor, executed: Callable[[Path], Executed]) -> tuple[str, Seen]:
    """Show a notebook as nbval executed it; return its name and what is seen."""
    content = nbformat.read(executed(notebook).path, as_version=4)
    name = f"{notebook.stem}-executed.ipynb"
    # HTML and SVG of a notebook without a signature are not shown.
    visitor.notary.sign(content)
    nbformat.write(content, visitor.notebooks / name)
    return name, visitor.look(name, run=False)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_executed_notebook_is_shown_without_faults(
    notebook: Path, visitor: Visitor, executed: Callable[[Path], Executed]
) -> None:
    assert not wrong_with(look_at_executed(notebook, visitor, executed)[1])
    assert visitor.left_for == []


def test_run_all_in_the_lab(visitor: Visitor) -> None:
    assert not wrong_with(visitor.look(NOTEBOOKS[0].name, run=True))
    assert visitor.left_for == []


def test_figures_follow_the_theme(visitor: Visitor, executed: Callable[[Path], Executed]) -> None:
    name, _ = look_at_executed(WITH_FIGURE, visitor, executed)
    seen = {}
    for theme in ("JupyterLab Dark", "JupyterLab Light"):
        visitor.evaluate(THEME, theme)
        is_light = str(theme.endswith("Light")).lower()
        visitor.page.wait_for_function(f"document.body.dataset.jpThemeLight === '{is_light}'")
        paper, ink, page = (brightness(colour) for colour in visitor.evaluate(COLOURS, name))
        seen[theme] = (paper == page, paper > ink)
    assert seen == {"JupyterLab Dark": (True, False), "JupyterLab Light": (True, True)}


def brightness(colour: str) -> int:
    """Return the sum of a CSS colour's red, green and blue."""
    names = {"white": "#ffffff", "black": "#000000"}
    if colour.strip().startswith("rgb"):
        return sum(map(int, re.findall(r"\d+", colour)[:3]))
    digits = names.get(colour.strip(), colour.strip()).removeprefix("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    return sum(bytes.fromhex(digits))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_triage_page_fits_a_phone_and_one_screen(scheme: str, visitor: Visitor, tmp_path: Path) -> None:
    with RedisServer(persist=True, config=NO_FSYNC) as server, server.client() as client:
        for number in range(60):
            client.set(f"chat:{number}", "{}", ex=300 if number % 2 else 604_800)
        write_html_report(server.url, expect=["chat:*=7d"], output=tmp_path / "report.html")
    context = visitor.page.context.browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.goto(f"file://{tmp_path / 'report.html'}")
    for width, height in ((390, 800), (794, 1123), (1280, 900)):  # 794: printed on A4
        page.set_viewport_size({"width": width, "height": height})
        if visitor.shots:
            page.screenshot(path=visitor.shots / f"triage-{scheme}-{width}.png", full_page=width < 1280)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(TIMES_IN_TILES)
    # The affected sessions, after verdict, numbers, figure, findings and evidence, are on the first screen.
    assert page.evaluate("document.querySelector('table').getBoundingClientRect().top") < 900
    body = "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
    paper, ink = page.evaluate(body)
    assert (brightness(paper) > brightness(ink)) == (scheme == "light")
    page.emulate_media(media="print")
    printed = page.evaluate(body)
    assert brightness(printed[0]) > brightness(printed[1])
    context.close()


def test_errors_and_requests_outside_are_found(visitor: Visitor) -> None:
    wrong = (
        "from IPython.display import HTML\nHTML('<img src=\"http://example.com/spy.png\">Where is my order?')",
        "import urllib.request\nurllib.request.urlopen('http://example.com/spy')",
        "1",
    )
    cells = [nbformat.v4.new_code_cell(source) for source in wrong]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), visitor.notebooks / "wrong.ipynb")
    seen = visitor.look("wrong.ipynb", run=True)
    left_for, visitor.left_for[:] = [str(one) for one in visitor.left_for], []
    not_run, error, image, message = wrong_with(seen)
    assert not_run == "code cell 2 did not run"
    assert "urlopen" in error
    assert image.startswith("an image whose text is ")
    assert message == "a message of somebody's: Where is my order?"
    assert {address[:26] for address in left_for} == {"b'GET http://example.com/s", "http://example.com/spy.png"}

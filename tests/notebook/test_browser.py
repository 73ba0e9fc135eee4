"""Every notebook as people see it: `memkit lab` in headless Chromium, Run All, in light and in dark.

Screenshots go to MEMKIT_ARTEFACTS, or else stay in pytest's temporary directory.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nbformat
import pytest
from notebook_policy import METADATA
from processes import linux
from test_lab import Lab
from test_notebooks import NOTEBOOKS

from memkit.notebook.demo import QUESTIONS

pytestmark = linux
WITHIN_MS = 300_000
WIDTH, TALLEST = 1280, 14_000
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-background-networking"]
LAB_CONFIG = {"LabApp": {"expose_app_in_browser": True}}
# Every cell is in the page, wherever it is scrolled to.
TRACKER = {"windowingMode": "none"}
READY = "window.jupyterapp && window.jupyterapp.restored.then(() => true)"
RUN_ALL = """async path => {
    const app = window.jupyterapp
    const panel = await app.commands.execute('docmanager:open', {path})
    await panel.context.ready
    await panel.sessionContext.ready
    await app.commands.execute('notebook:run-all-cells')
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
# Playwright waits for a promise as long as it takes.
IN_TIME = "value => Promise.race([({script})(value), new Promise((_, no) => setTimeout(no, {ms}, new Error('hangs')))])"


@dataclass(frozen=True)
class Seen:
    """What there was to see of a notebook after Run All: code cells with outputs, each image's alt text, all text."""

    cells: list[dict[str, Any]]
    images: list[str]
    text: str


class Elsewhere:
    """A proxy that answers nobody: whoever asks it wanted to leave this machine."""

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
    shots = Path(os.environ.get("MEMKIT_ARTEFACTS") or folder) / "screenshots"
    shots.mkdir(parents=True, exist_ok=True)
    lab = Lab(folder, env=elsewhere.environment())
    try:
        with playwright() as driver:
            visitor = Visitor(driver, lab, shots, folder, elsewhere)
            yield visitor
            visitor.look_again_in_the_dark()
    finally:
        lab.end()


def _playwright() -> Any:
    """Return playwright's entry point; say aloud what is missing here, and fail where CI has to have it."""
    missing = pytest.fail if os.environ.get("CI") else pytest.skip
    if not CHROMIUM:
        missing("no Chromium on PATH: apt install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no playwright: pip install playwright")
    return sync_playwright


def configure(folder: Path) -> None:
    """Write the settings of a Jupyter of its own: see own_jupyter."""
    settings = folder / "jupyter_config_dir/lab/user-settings/@jupyterlab/notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text(json.dumps(TRACKER))
    (folder / "jupyter_config_dir/jupyter_lab_config.json").write_text(json.dumps(LAB_CONFIG))


class Visitor:
    """A browser in the lab."""

    def __init__(self, driver: Any, lab: Lab, shots: Path, home: Path, elsewhere: Elsewhere) -> None:
        self.shots = shots
        self.notebooks = home / "notebooks"
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

    def run_all(self, name: str) -> Seen:
        seen = Seen(**self._evaluate(RUN_ALL, name))
        self.seen.append(name)
        self._shoot(name, "light")
        return seen

    def look_again_in_the_dark(self) -> None:
        """Switch once: JupyterLab loads a theme's style sheets and fades."""
        self._evaluate(THEME, "JupyterLab Dark")
        for name in self.seen:
            self._shoot(name, "dark")

    def _shoot(self, name: str, theme: str) -> None:
        height = self._evaluate(SHOW, name)
        self.page.set_viewport_size({"width": WIDTH, "height": min(height + 150, TALLEST)})
        self.page.screenshot(path=self.shots / f"{name.removesuffix('.ipynb')}-{theme}.png")

    def _evaluate(self, script: str, value: Any) -> Any:
        return self.page.evaluate(IN_TIME.format(script=script, ms=WITHIN_MS), value)


def wrong_with(seen: Seen) -> list[str]:
    errors = [out for cell in seen.cells for out in cell["outputs"] if out["output_type"] == "error"]
    return [
        *(f"code cell {number} did not run" for number, cell in enumerate(seen.cells) if not cell["execution_count"]),
        *("\n".join(error["traceback"]) for error in errors),
        *(f"an image whose text is {text!r}" for text in seen.images if len(text) < 20),
        *(f"a message of somebody's: {text}" for text in QUESTIONS if len(text) > 8 and text in seen.text),
    ]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_run_all_shows_no_error_and_nothing_leaves_the_machine(notebook: Path, visitor: Visitor) -> None:
    assert not wrong_with(visitor.run_all(notebook.name))
    assert visitor.left_for == []


def test_whatever_is_wrong_would_be_seen(visitor: Visitor) -> None:
    wrong = (
        "from IPython.display import HTML\nHTML('<img src=\"http://example.com/spy.png\">Where is my order?')",
        "import urllib.request\nurllib.request.urlopen('http://example.com/spy')",
        "1",
    )
    cells = [nbformat.v4.new_code_cell(source) for source in wrong]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=METADATA), visitor.notebooks / "wrong.ipynb")
    seen = visitor.run_all("wrong.ipynb")
    left_for, visitor.left_for[:] = [str(one) for one in visitor.left_for], []
    not_run, error, image, message = wrong_with(seen)
    assert not_run == "code cell 2 did not run"
    assert "urlopen" in error
    assert image.startswith("an image whose text is ")
    assert message == "a message of somebody's: Where is my order?"
    assert {address[:26] for address in left_for} == {"b'GET http://example.com/s", "http://example.com/spy.png"}

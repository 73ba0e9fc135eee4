"""``memkit lab``: JupyterLab on the notebooks, with the demo incident already on a private Redis."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources, util
from pathlib import Path

from memkit.connect import connect, redact
from memkit.demo import load_incident
from memkit.errors import MemkitError
from memkit.server import RedisServer

NEEDED = ("jupyterlab", "ipytest", "pandas", "matplotlib")
# Nothing is fetched from or sent to elsewhere: no news, no extension manager.
JUPYTER_OPTIONS = (
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
    "--ServerApp.terminals_enabled=False",
)


def run_lab(*, directory: Path | None, port: int | None, browser: bool, url: str | None) -> int:
    """Run JupyterLab until it ends; return its exit code.

    ``directory``: notebooks are opened there, copied first unless it has them. ``url``: an existing Redis to look at
    instead of the demo incident. Raises MemkitError saying what to type when something is missing.
    """
    missing = [name for name in NEEDED if not util.find_spec(name)]
    if missing:
        raise MemkitError(f"{', '.join(missing)} not installed; type: pip install 'redis-memkit[lab,server]'")
    if port is not None and not _is_free(port):
        raise MemkitError(f"port {port} is taken; type: memkit lab --port {port + 1}, or leave --port away")
    folder = prepare(directory)
    with contextlib.ExitStack() as stack:
        target = url or stack.enter_context(_demo())
        if url:
            connect(url).ping()
        print(f"memkit lab: notebooks in {folder}; investigating {redact(target)}", file=sys.stderr, flush=True)
        return _jupyter(folder, port, browser, {"MEMKIT_LAB_URL": target})


def notebooks() -> Path:
    """Return the folder with memkit's own notebooks: the checkout's, or the installed package's."""
    beside = Path(__file__).parent.parent / "notebooks"
    if (beside / "00_start_here.ipynb").exists():
        return beside
    return Path(str(resources.files("memkit") / "notebooks"))


def prepare(directory: Path | None) -> Path:
    """Return the folder to open: the checkout's notebooks, or a copy, which overwrites nothing that is there."""
    source = notebooks()
    if directory is None and os.access(source, os.W_OK) and source.parent.name != "memkit":
        return source
    target = directory or Path.cwd() / "memkit-notebooks"
    target.mkdir(parents=True, exist_ok=True)
    for notebook in sorted(source.glob("*.ipynb")):
        if not (target / notebook.name).exists():
            shutil.copy(notebook, target / notebook.name)
    return target


@contextlib.contextmanager
def _demo() -> Iterator[str]:
    with RedisServer(persist=True, config={"appendfsync": "everysec"}) as server:
        yield load_incident(server).url


def _jupyter(folder: Path, port: int | None, browser: bool, environment: dict[str, str]) -> int:
    command = [sys.executable, "-m", "jupyterlab", str(folder), *JUPYTER_OPTIONS]
    command += [f"--port={port}", "--port-retries=0"] if port else []
    command += [] if browser else ["--no-browser"]
    command += ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    # In a session of its own: Ctrl-C reaches JupyterLab through this process once, as SIGTERM, without its question.
    lab = subprocess.Popen(command, env=os.environ | environment, start_new_session=True)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: lab.terminate())
    code = lab.wait()
    return 0 if code in (0, -signal.SIGTERM) else code


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True

"""``memkit lab``: JupyterLab on the notebooks, with the demo incident already on a private Redis."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import resources, util
from pathlib import Path

from memkit.connect import connect, redact
from memkit.errors import MemkitError
from memkit.notebook.demo import demo_server, keep_talking, load_incident
from memkit.server.launcher import find_server

NEEDED = ("jupyterlab", "ipytest", "pandas", "matplotlib")
# Nothing is fetched from or sent to elsewhere: no news, no extension manager. Kernels listen on unix sockets in the
# lab's own directory instead of on TCP ports. The browser is given an address: those in a snap cannot read the file in
# a temporary directory that it would be given otherwise.
JUPYTER_OPTIONS = (
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
    "--LabApp.default_url=/lab/tree/00_start_here.ipynb",
    "--ServerApp.terminals_enabled=False",
    "--ServerApp.use_redirect_file=False",
    "--KernelManager.transport=ipc",
    "--Application.log_level=ERROR",
)
# Defaults, under whatever the user's own settings say: no question about news; names of notebooks in full.
JUPYTER_DEFAULTS = {
    "page_config.json": {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
    "default_setting_overrides.json": {"@jupyterlab/filebrowser-extension:browser": {"showLastModifiedColumn": False}},
}

# JupyterLab is the child of a tiny shell in a session of its own, as the servers are: however this process ends, the
# read returns, and JupyterLab is asked to end, then made to. Its kernels end with it (each looks for its parent once a
# second), and their servers with them.
WATCHDOG = """
runtime=$1; shift
exec 3<&0
"$@" 3<&- & lab=$!
exec >/dev/null 2>&1
{ read -r order <&3
  kill $lab
  for tenth in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15; do sleep 0.1; kill -0 $lab || exit; done
  kill -9 $lab
} & guard=$!
wait $lab; code=$?
kill $guard
rm -rf "$runtime"
exit $code
"""


def run_lab(*, directory: Path | None, port: int | None, browser: bool, url: str | None) -> int:
    """Run JupyterLab until it ends; return its exit code.

    ``directory``: notebooks are opened there, copied first unless it has them. ``url``: an existing Redis to look at
    instead of the demo incident. Raises MemkitError saying what to type when something is missing.
    """
    missing = [name for name in NEEDED if not util.find_spec(name)]
    if missing:
        raise MemkitError(f"{', '.join(missing)} not installed; type: pip install 'redis-memkit[lab,server]'")
    if port and not _is_free(port):
        raise MemkitError(f"port {port} is taken; type: memkit lab, which takes a free one, or another --port")
    find_server()
    folder = prepare(directory)
    with contextlib.ExitStack() as stack:
        if url:
            connect(url).ping()
        target = url or stack.enter_context(_demo())
        what = f"{redact(url)}, read-only" if url else "the demo incident, on a private Redis"
        print(
            f"memkit lab: notebooks in {folder}; to be looked at: {what}. Ctrl-C ends it", file=sys.stderr, flush=True
        )
        return _jupyter(folder, port, browser, target)


def notebooks() -> Path:
    """Return the folder with memkit's own notebooks: the checkout's, or the installed package's."""
    beside = Path(__file__).parents[2] / "notebooks"
    if (beside / "00_start_here.ipynb").exists():
        return beside
    return Path(str(resources.files("memkit") / "notebooks"))


def prepare(directory: Path | None) -> Path:
    """Return the folder to open: the checkout's notebooks, or a copy, which overwrites nothing that is there.

    Raises MemkitError where no such folder can be made.
    """
    source = notebooks()
    if directory is None and os.access(source, os.W_OK) and source.parent.name != "memkit":
        return source
    target = directory or Path.cwd() / "memkit-notebooks"
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise MemkitError(
            f"{target} is a file or under one; expected a folder for the notebooks; type: memkit lab --dir FOLDER"
        ) from None
    for notebook in sorted(source.glob("*.ipynb")):
        if not (target / notebook.name).exists():
            shutil.copy(notebook, target / notebook.name)
    return target


@contextlib.contextmanager
def _demo() -> Iterator[str]:
    with demo_server() as server:
        url = load_incident(server).url
        over = keep_talking(url)
        yield url
        over.set()


def _jupyter(folder: Path, port: int | None, browser: bool, investigated: str) -> int:
    runtime = _runtime()
    read_end, write_end = os.pipe()
    try:
        watchdog = subprocess.Popen(
            ["/bin/sh", "-c", WATCHDOG, "memkit-lab-watchdog", str(runtime), *_command(folder, port, browser)],
            stdin=read_end,
            env=_environment(runtime, investigated),
            start_new_session=True,
        )
    finally:
        os.close(read_end)
    with _ended_by_signals(lambda: os.close(write_end)) as asked:
        code = watchdog.wait()
    if code and not asked:
        raise MemkitError(f"JupyterLab ended with exit code {code}; what it said is above")
    return 0


def _command(folder: Path, port: int | None, browser: bool) -> list[str]:
    command = [sys.executable, "-m", "jupyterlab", str(folder), *JUPYTER_OPTIONS]
    command += [f"--port={port}", "--port-retries=0"] if port else []
    command += [] if browser else ["--no-browser"]
    return command + (["--allow-root"] if os.geteuid() == 0 else [])


def _environment(runtime: Path, investigated: str) -> dict[str, str]:
    paths = filter(None, (str(runtime), os.environ.get("JUPYTER_CONFIG_PATH")))
    return os.environ | {
        "MEMKIT_LAB_URL": investigated,
        "JUPYTER_RUNTIME_DIR": str(runtime),
        "JUPYTER_CONFIG_PATH": os.pathsep.join(paths),
    }


def _runtime() -> Path:
    """Return a new directory for what JupyterLab needs while it runs; the watchdog removes it."""
    # A kernel's sockets add 50 bytes, of the 103 that macOS has for all.
    base = tempfile.gettempdir() if len(os.fsencode(tempfile.gettempdir())) < 32 else "/tmp"  # noqa: S108
    directory = Path(tempfile.mkdtemp(prefix="memkit-lab-", dir=base))
    (directory / "labconfig").mkdir()
    for name, content in JUPYTER_DEFAULTS.items():
        (directory / "labconfig" / name).write_text(json.dumps(content))
    return directory


@contextlib.contextmanager
def _ended_by_signals(end: Callable[[], None]) -> Iterator[list[int]]:
    """Call ``end`` once: at the first signal that asks this process to end, or afterwards. Yields those signals."""
    asked: list[int] = []

    def stop(number: int, _: object) -> None:
        if not asked:
            end()
        asked.append(number)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if not asked:
            end()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        except OverflowError:
            raise MemkitError(f"{port} is no port; expected 1 to 65535, or leave --port away") from None
    return True

"""``memkit lab``: JupyterLab with the notebooks, and the demo incident on a private Redis."""

import contextlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Sequence
from importlib import resources, util
from pathlib import Path

from memkit.config import configured_expectations, parse_expectation
from memkit.connect import connect, redact
from memkit.errors import MemkitError
from memkit.notebook.demo import EXPECTATIONS, LAB_EXPECT, LAB_URL, continue_incident, demo_server, load_incident
from memkit.server.launcher import ended_by_signals, find_server, short_directory, start_watched

REQUIRED = ("jupyterlab", "ipytest", "pandas", "matplotlib")
# No network access: no news, no extension manager. Kernels listen on unix sockets in the lab's own directory instead of
# TCP ports. The browser gets a URL, because a browser in a snap cannot read a redirect file in a temporary directory.
JUPYTER_OPTIONS = (
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
    "--LabApp.default_url=/lab/tree/00_start_here.ipynb",
    "--ServerApp.terminals_enabled=False",
    "--ServerApp.use_redirect_file=False",
    "--KernelManager.transport=ipc",
    "--KernelManager.shutdown_wait_time=1",
    "--Application.log_level=ERROR",
)
# Defaults that the user's own settings override: no question about news, full names of notebooks.
JUPYTER_DEFAULTS = {
    "page_config.json": {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
    "default_setting_overrides.json": {"@jupyterlab/filebrowser-extension:browser": {"showLastModifiedColumn": False}},
}

# JupyterLab is the child of a small shell in a session of its own, like the servers: however this process ends, the
# read returns, and JupyterLab gets SIGTERM. It then ends its kernels, and their servers end with them. After 30 s it
# gets SIGKILL, which would leave kernels that write to the runtime directory until they check their parent.
WATCHDOG = """
runtime=$1; shift
exec 3<&0
"$@" 3<&- & lab=$!
exec >/dev/null 2>&1
{ read -r order <&3
  kill $lab
  tenths=0
  while [ $tenths -lt 300 ]; do sleep 0.1; kill -0 $lab || exit; tenths=$((tenths + 1)); done
  kill -9 $lab
} & guard=$!
wait $lab; code=$?
kill $guard
rm -rf "$runtime" || { sleep 1; rm -rf "$runtime"; }
exit $code
"""


def run_lab(
    *, directory: Path | None, port: int | None, browser: bool, url: str | None, expect: Sequence[str] = ()
) -> int:
    """Run JupyterLab until it ends; return the exit code.

    Args:
        directory: The folder with the notebooks; those that are missing in it are copied there. None: the clone's
            notebooks, or a copy of the installed ones.
        port: JupyterLab's port; None: 8888 or the next free one.
        browser: Whether to open a browser.
        url: A Redis to investigate, read-only; None: the demo incident.
        expect: Its expected TTLs, such as ``chat:*=7d``; none: those of the configuration file.

    Raises:
        MemkitError: Something is missing, and the message gives the command to type; or an expectation is invalid.
    """
    for text in expect:
        parse_expectation(text)
    missing = [name for name in REQUIRED if not util.find_spec(name)]
    if missing:
        raise MemkitError(f"{', '.join(missing)} not installed; type: pip install 'redis-memkit[lab,server]'")
    if port and not _is_free(port):
        raise MemkitError(f"port {port} is in use; use another --port, or none: memkit lab then finds a free one")
    find_server()
    folder = prepare(directory)
    with contextlib.ExitStack() as stack:
        if url:
            connect(url).ping()
            target, expectations = url, list(expect) or [one.text for one in configured_expectations()]
            description = f"{redact(url)}, read-only"
        else:
            demo = load_incident(stack.enter_context(demo_server()))
            stack.callback(continue_incident(demo.url).set)
            target, expectations = demo.url, list(expect) or EXPECTATIONS
            description = "the demo incident on a private Redis"
        lines = (f"notebooks: {folder}", f"investigating: {description}", "Ctrl-C stops JupyterLab and its servers.")
        print("memkit lab", *lines, sep="\n  ", file=sys.stderr, flush=True)
        return _jupyter(folder, port, browser, {LAB_URL: target, LAB_EXPECT: "\n".join(expectations)})


def notebooks() -> Path:
    """Return the folder with memkit's notebooks: the clone's, or the installed package's."""
    return _clone() or Path(str(resources.files("memkit") / "notebooks"))


def _clone() -> Path | None:
    """Return the notebooks of the clone that this module is in, if it is in one."""
    root = Path(__file__).parents[2]
    return root / "notebooks" if (root / "pyproject.toml").exists() and (root / "notebooks").is_dir() else None


def prepare(directory: Path | None) -> Path:
    """Return the folder to open: the clone's notebooks, or a copy of the notebooks that overwrites no file."""
    clone = _clone()
    if directory is None and clone and os.access(clone, os.W_OK):
        return clone
    source = notebooks()
    target = directory or Path.cwd() / "memkit-notebooks"
    try:
        target.mkdir(parents=True, exist_ok=True)
        for notebook in sorted(source.glob("*.ipynb")):
            if not (target / notebook.name).exists():
                shutil.copy(notebook, target / notebook.name)
    except (FileExistsError, NotADirectoryError):
        raise MemkitError(f"{target} is a file or inside of one; give a folder: memkit lab --dir FOLDER") from None
    except OSError as error:
        why = f"the notebooks cannot be copied to {target}: {error.strerror}"
        raise MemkitError(f"{why}; give another folder: memkit lab --dir FOLDER") from None
    return target


def _jupyter(folder: Path, port: int | None, browser: bool, variables: dict[str, str]) -> int:
    # The names of a kernel's sockets add 50 bytes, and macOS allows 103 in all. The watchdog removes the directory.
    runtime = short_directory("memkit-lab-", 32)
    (runtime / "labconfig").mkdir()
    for name, content in JUPYTER_DEFAULTS.items():
        (runtime / "labconfig" / name).write_text(json.dumps(content))
    command = [sys.executable, "-m", "jupyterlab", str(folder), *JUPYTER_OPTIONS]
    command += [f"--port={port}", "--port-retries=0"] if port else []
    command += [] if browser else ["--no-browser"]
    command += ["--allow-root"] if os.geteuid() == 0 else []
    paths = os.pathsep.join(filter(None, (str(runtime), os.environ.get("JUPYTER_CONFIG_PATH"))))
    variables |= {"JUPYTER_RUNTIME_DIR": str(runtime), "JUPYTER_CONFIG_PATH": paths}
    words = ["memkit-lab-watchdog", str(runtime), *command]
    watchdog, write_end = start_watched(WATCHDOG, words, env=os.environ | variables)
    ended = ended_by_signals()
    while watchdog.poll() is None and not ended.wait(0.2):
        pass
    os.close(write_end)
    code = watchdog.wait()
    if code and not ended.is_set():
        raise MemkitError(f"JupyterLab ended with exit code {code}; its messages are above")
    return 0


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        except OverflowError:
            raise MemkitError(f"{port} is not a port; expected 1 to 65535") from None
    return True

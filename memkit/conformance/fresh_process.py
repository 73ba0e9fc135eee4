"""A process of its own that shares nothing with the suite's: a fresh interpreter that imports the adapter by name.

Run as ``python -m memkit.conformance.fresh_process SPEC`` by Fresh: it takes one job, a JSON object, says what came of
it, and ends when the suite's process does.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from typing import Any

from memkit.conformance.adapter import AdapterError, Messages, StoreAdapter, load, one_line, search_path
from memkit.conformance.processes import LONGEST_S, parts_of


class NotStarted(RuntimeError):
    """The process said nothing in time, or cannot import the adapter; that says nothing of the store."""


class Fresh:
    """An interpreter that is started now and gets its work later: importing takes time. ``stop`` ends it."""

    def __init__(self, spec: str) -> None:
        # Hashes of text differ by process in production, too; a fixed seed alone would hide that.
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "memkit.conformance.fresh_process", spec],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": search_path(), "PYTHONHASHSEED": seed},
        )

    def read_and_append(self, *, limit_s: float, **job: object) -> Messages:
        """Have it open a session, read it and append a message; return what it read.

        ``job``: url, session_id, ttl_s, role, text. Raises RuntimeError with what the store raised, NotStarted when
        the process says nothing.
        """
        if self._process.stdin is None or self._process.stdout is None:
            raise NotStarted("no process")
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise NotStarted("a fresh process ended at once") from None
        said = b"".join(parts_of(self._process.stdout.fileno(), limit_s, until=b"\n"))
        if not said.endswith(b"\n"):
            raise NotStarted(f"a fresh process said nothing within {limit_s:.2g} s")
        outcome = json.loads(said)
        if "unable" in outcome:
            raise NotStarted(outcome["unable"])
        if "error" in outcome:
            raise RuntimeError(outcome["error"])
        return [(role, text) for role, text in outcome["result"]]

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


def main(spec: str) -> None:
    """Do one job and end without asking the store's own threads."""
    jobs: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    threading.Timer(LONGEST_S, os._exit, (2,)).start()
    # What a store prints goes to stderr; stdout belongs to the result.
    with os.fdopen(os.dup(1), "w") as out:
        os.dup2(2, 1)
        outcome: dict[str, object]
        try:
            outcome = {"result": _done(load(spec), jobs)}
        except AdapterError as error:
            outcome = {"unable": str(error)}
        except BaseException as error:  # noqa: BLE001  # told to the suite, which decides
            outcome = {"error": one_line(error)}
        print(json.dumps(outcome), file=out, flush=True)
    os._exit(0)


def _done(adapter: StoreAdapter, jobs: queue.SimpleQueue[bytes]) -> Messages:
    job: dict[str, Any] = json.loads(jobs.get())
    handle = adapter.open(job["url"], job["session_id"], job["ttl_s"])
    read = [(role, text) for role, text in handle.read()]
    handle.append(job["role"], job["text"])
    handle.close()
    return read


def _listen(jobs: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        jobs.put(line)
    os._exit(2)


if __name__ == "__main__":
    main(sys.argv[1])

"""Work done in other processes: a store that keeps state in its process is right among threads and wrong outside."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from memkit.conformance.adapter import one_line
from memkit.conformance.bench import Bench
from memkit.conformance.case import NotAsked

LIMIT_S = 60.0
LONGEST_S = 120.0
"""A process that works for longer than this ends by itself."""


class NotAnswered(RuntimeError):
    """A forked process did not say anything in time, or ended without a word."""


class Child:
    """A forked process that does some work and then ends, whatever the store's atexit hooks want."""

    def __init__(self, work: Callable[[], object]) -> None:
        if not hasattr(os, "fork"):
            raise NotAsked("this platform cannot fork a process")
        self._read_end: int
        self._read_end, write_end = os.pipe()
        with warnings.catch_warnings():
            # Python 3.12+ warns of forking beside threads; the child calls the store alone and ends by _exit.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            _work_and_end(work, write_end)
        os.close(write_end)

    def result(self, *, limit_s: float = LIMIT_S) -> Any:
        """Return what the work returned (as JSON types); raise RuntimeError when it raised, NotAnswered when late."""
        said = b""
        try:
            for part in parts_of(self._read_end, limit_s):
                said += part
        finally:
            self.kill()
        if not said:
            raise NotAnswered(f"another process did not answer within {limit_s:g} s")
        outcome = json.loads(said)
        if "error" in outcome:
            raise RuntimeError(outcome["error"])
        return outcome["result"]

    def done(self, *, within_s: float) -> bool:
        """Whether the process has said its result, or ended, within a time."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._read_end, selectors.EVENT_READ)
            return bool(selector.select(within_s))

    def kill(self) -> None:
        """SIGKILL the process and wait for its end."""
        if self._read_end < 0:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._read_end)
        self._read_end = -1


def _work_and_end(work: Callable[[], object], write_end: int) -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        try:
            outcome = {"result": work()}
        except BaseException as error:  # noqa: BLE001  # told to the parent, which decides
            outcome = {"error": one_line(error)}
        with os.fdopen(write_end, "w") as out:
            json.dump(outcome, out)
    finally:
        os._exit(0)


def _end_with(parent: int) -> None:
    """End when the suite has ended, however, or after a time in which any work is done."""
    for _ in range(round(LONGEST_S / 0.5)):
        time.sleep(0.5)
        if os.getppid() != parent:
            break
    os._exit(0)


def parts_of(read_end: int, limit_s: float, *, until: bytes = b"") -> Iterator[bytes]:
    """Yield what comes out of a pipe until its end (or a part that ends with ``until``), or a time is over."""
    deadline = time.monotonic() + limit_s
    with selectors.DefaultSelector() as selector:
        selector.register(read_end, selectors.EVENT_READ)
        while selector.select(max(0.0, deadline - time.monotonic())):
            part = os.read(read_end, 65536)
            if not part:
                return
            yield part
            if until and part.endswith(until):
                return


def in_process(work: Callable[[], object], *, limit_s: float = LIMIT_S) -> Any:
    """Do work in a forked process and return its result."""
    return Child(work).result(limit_s=limit_s)


def works_when_forked(bench: Bench) -> bool:
    """Whether the store answers in a forked process; one with a thread or loop from before the fork may not."""
    if bench.forks is None:
        try:
            in_process(partial(_open_and_append, bench, bench.id("forked")))
        except NotAnswered:
            bench.forks = False
        else:
            bench.forks = True
    return bench.forks


def _open_and_append(bench: Bench, session_id: str) -> None:
    bench.open(session_id).append("user", "said by a forked process")


def together(works: Sequence[Callable[[], None]]) -> None:
    """Do works at the same time, in threads; raise what the first of them, in their order, raised."""
    errors: list[Exception | None] = [None] * len(works)

    def body(number: int) -> None:
        try:
            works[number]()
        except Exception as error:  # noqa: BLE001  # raised again below
            errors[number] = error

    threads = [threading.Thread(target=body, args=(number,), daemon=True) for number in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for error in errors:
        if error:
            raise error


class Waiting:
    """Work that may not end while the server is down, in a thread of its own."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._outcome: list[object] = []

        def body() -> None:
            try:
                self._outcome.append(work())
            except Exception as error:  # noqa: BLE001  # given back as the result
                self._outcome.append(error)

        self._thread = threading.Thread(target=body, daemon=True)
        self._thread.start()

    def result(self, *, within_s: float) -> object:
        """Return what the work returned or raised; a TimeoutError when it has not ended yet."""
        self._thread.join(within_s)
        return self._outcome[0] if self._outcome else TimeoutError("not done")

"""Ask a store every question, each within its time, and say how it answered."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Literal

import redis

from memkit.conformance.adapter import AdapterError, Handle, StoreAdapter, checked_handle, one_line, search_path
from memkit.conformance.bench import TTL_S, Bench
from memkit.conformance.case import Case, Forgot, NotAsked, Stalled
from memkit.conformance.cases import CASES
from memkit.conformance.report import to_html, to_text
from memkit.conformance.talk import Talk
from memkit.errors import MemkitError, ServerError, ServerNotFound
from memkit.server import READY_WITHIN_S

CASE_LIMIT_S = 60.0
"""Decides that a store hangs: a case takes 0.05 to 5 s."""
FIRST_LIMIT_S = 60.0
"""For one session opened, written, read, cleared and closed, before the cases."""
IMPORT_LIMIT_S = 120.0
"""For importing the adapter; heavy libraries take 10 s on a machine that is busy."""
MOST_HANGS = 5
ENDING_S = 1.0
"""For a process that has closed its stdout to be over."""
OWN_CLOCK = (
    "deadlines come from the client's clock, not the server's: right only while the two agree; asked by moving the "
    "keys' deadlines instead of the clock"
)
TRIES = 3
"""How often a case is asked again when this machine stood still at the wrong moment."""


class Hung(Exception):
    """The store was still at it when its time was over."""


Outcome = Literal["passed", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class CaseResult:
    """How a store answered one case; ``says`` is what was seen, the reason of a skip, or a remark."""

    name: str
    outcome: Outcome
    says: str
    meaning: str
    why: str
    fix: str
    took_s: float
    hung: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """How a store answered the suite; ``server`` is the server it was asked on, in words."""

    store: str
    server: str
    cases: tuple[CaseResult, ...]
    took_s: float = field(default=0.0)

    def count(self, outcome: Outcome) -> int:
        """Return how many cases ended so."""
        return sum(case.outcome == outcome for case in self.cases)

    @property
    def exit_code(self) -> int:
        """0: nothing failed; 1: something did."""
        return int(self.count("failed") > 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types: schema, store, passed, failed, skipped, cases, and what it ran on."""
        counts = {outcome: self.count(outcome) for outcome in ("passed", "failed", "skipped")}
        cases = [{name: value for name, value in asdict(case).items() if name != "hung"} for case in self.cases]
        return {
            "schema": 1,
            "store": self.store,
            **counts,
            "cases": cases,
            "server": self.server,
            "took_s": self.took_s,
        }

    def to_json(self) -> str:
        """Return to_dict() as text."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def to_text(self, *, color: bool = False) -> str:
        """Return the result in pytest's form; see report.to_text."""
        return to_text(self, color=color)

    def __repr__(self) -> str:
        return to_text(self)

    def _repr_html_(self) -> str:
        return to_html(self)


def limited(work: Callable[[], object], limit_s: float) -> BaseException | None:
    """Do work in a thread of its own; return what it raised, or Hung when it is still at it.

    A thread cannot be ended: one that hangs is left alone, and whoever owns the process decides what becomes of it.
    """
    raised: list[BaseException | None] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001  # SystemExit of a store included: it is told as a failure
            raised.append(error)
        else:
            raised.append(None)

    thread = threading.Thread(target=body, daemon=True, name="memkit-conformance")
    with warnings.catch_warnings():
        # A warning of the store is not a wrong answer, also where pytest turns warnings into errors.
        warnings.simplefilter("ignore")
        thread.start()
        thread.join(limit_s)
    return raised[0] if raised else Hung(f"no answer within {limit_s:g} s")


def first_contact(bench: Bench, label: str, *, limit_s: float = FIRST_LIMIT_S) -> None:
    """Open a session once and close it again; raise AdapterError, one line, when that raises or hangs."""
    step = ["open()"]

    def work() -> None:
        handle = checked_handle(bench.adapter.open(bench.url, bench.id("first"), bench.ttl(TTL_S)), label)
        for name, call in _steps(handle):
            step[0] = name
            _ignoring_errors(call)

    bench.begin()
    error = limited(work, limit_s)
    if isinstance(error, Hung):
        raise AdapterError(f"{label}: {step[0]} hangs: {error}")
    if isinstance(error, AdapterError):
        raise error
    if error:
        raise AdapterError(f"{label}: {step[0]} raised {one_line(error)}")


def _steps(handle: Handle) -> Iterable[tuple[str, Callable[[], object]]]:
    yield "append()", lambda: handle.append("user", "first contact")
    yield "read()", handle.read
    yield "clear()", handle.clear
    yield "close()", handle.close


def _ignoring_errors(call: Callable[[], object]) -> None:
    # The cases tell an error better; here only hanging counts.
    with contextlib.suppress(Exception):
        call()


def ask(case: Case, bench: Bench, *, limit_s: float = CASE_LIMIT_S) -> CaseResult:
    """Ask a store one case on an emptied server."""
    began = time.monotonic()
    bench.limit_s = limit_s
    remark: list[str] = []

    def work() -> None:
        bench.begin()
        remark.append(case.ask(bench) or "")

    error = _reason_not_to(case, bench) or _asked(work, limit_s)
    if case.needs_ttl and isinstance(error, Forgot) and trusts_its_own_clock(bench):
        with bench.moving_deadlines():
            error = _asked(work, limit_s)
        remark.append(OWN_CLOCK)
    outcome, says = _verdict(error)
    hung = isinstance(error, Hung)
    says = says or (remark[-1] if remark else "") or case.meaning
    return CaseResult(
        case.name, outcome, says, case.meaning, case.why, case.fix, round(time.monotonic() - began, 3), hung
    )


def _asked(work: Callable[[], object], limit_s: float) -> BaseException | None:
    for _ in range(TRIES):
        error = limited(work, limit_s)
        # A store's own time-out, with nothing wrong, is the machine's fault as often as the store's.
        if not isinstance(error, Stalled | redis.TimeoutError | TimeoutError):
            break
    return error


def trusts_its_own_clock(bench: Bench) -> bool:
    """Whether the store computes deadlines from its process's clock: then a session is dead on arrival a day later.

    The suite moves the server's clock; in production the two agree, so this is not held against a store.
    """
    answer: list[bool] = []

    def work() -> None:
        bench.begin()
        bench.move_to(bench.now_s() + 86_400)
        talk = Talk(bench)
        talk.say()
        answer.append(not bench.read(talk.id))

    limited(work, FIRST_LIMIT_S)
    return bench.clock.rung == "preload" and answer == [True]


def _reason_not_to(case: Case, bench: Bench) -> BaseException | None:
    return (
        NotAsked("the store declares that it has no TTL (has_ttl = False)")
        if case.needs_ttl and not bench.has_ttl
        else None
    )


def _verdict(error: BaseException | None) -> tuple[Outcome, str]:
    if error is None:
        return "passed", ""
    if isinstance(error, NotAsked):
        return "skipped", str(error)
    if isinstance(error, Stalled):
        return "skipped", f"{error}, {TRIES} times in a row"
    if isinstance(error, Forgot | Hung):
        return "failed", str(error)
    return "failed", f"raised with nothing wrong: {one_line(error)}"


def ask_all(
    adapter: StoreAdapter,
    *,
    label: str,
    spec: str = "",
    cases: Iterable[Case] = CASES,
    limit_s: float = CASE_LIMIT_S,
    on_contact: Callable[[], None] = lambda: None,
    on_case: Callable[[CaseResult], None] = lambda _: None,
) -> Result:
    """Ask an adapter in this process; the run ends at the first case that hangs.

    ``spec``: its package.module:factory, by which a fresh interpreter can import it too. ``on_contact`` is called when
    a session was opened and closed once, before the cases.

    Raises AdapterError when open() raises or hangs, ServerNotFound when there is no server.
    """
    began = time.monotonic()
    answers: list[CaseResult] = []
    with Bench(adapter, spec=spec) as bench:
        first_contact(bench, label, limit_s=min(limit_s, max(FIRST_LIMIT_S, limit_s / 2)))
        on_contact()
        server = f"{bench.server.flavour} {bench.server.version} ({bench.server.source}), clock by {bench.clock.rung}"
        for case in cases:
            answers.append(ask(case, bench, limit_s=limit_s))
            on_case(answers[-1])
            if answers[-1].hung:
                bench.abandon_handles()
                break
    return Result(adapter.name, server, tuple(answers), round(time.monotonic() - began, 2))


# The run of the command line: in a process of its own, which may hang or crash


def run(
    spec: str,
    *,
    limit_s: float = CASE_LIMIT_S,
    names: Iterable[str] = (),
    on_case: Callable[[CaseResult], None] = lambda _: None,
) -> Result:
    """Ask the store that ``package.module:factory`` makes, in a process of its own; return how it answered.

    ``limit_s``: the time a case may take; one that takes longer is failed and its process ended. ``names``: the cases
    to ask, all by default. ``on_case`` is called with each answer as it comes.

    Raises AdapterError, one line, when the adapter does not import, lacks a method, raises in open(), hangs at once or
    ends its process before the first case; ServerNotFound when there is no server to run on.
    """
    began = time.monotonic()
    chosen = set(names)
    wanted = [case.name for case in CASES if not chosen or case.name in chosen]
    answers: list[CaseResult] = []
    told: dict[str, str] = {"store": spec, "server": "", "step": "while the adapter was imported"}
    while len(answers) < len(wanted):
        hangs = sum(case.hung for case in answers)
        if hangs == MOST_HANGS:
            answers += [_lost(name, f"not asked: {hangs} cases hung before it") for name in wanted[len(answers) :]]
        else:
            # A store that hung once is given less time: the whole run should end, too.
            _go_on(spec, limit_s / 3 if hangs else limit_s, wanted[len(answers) :], answers, told, on_case)
    return Result(told["store"], told["server"], tuple(answers), round(time.monotonic() - began, 2))


def _go_on(
    spec: str,
    limit_s: float,
    names: list[str],
    answers: list[CaseResult],
    told: dict[str, str],
    on_case: Callable[[CaseResult], None],
) -> None:
    """Ask from the first of the cases on, until the process hangs or dies or all are answered; at least one is."""
    count = len(answers)
    try:
        for line in _worker(spec, limit_s, names):
            _take(line, answers, told, on_case)
    except AdapterError as error:
        if not count:
            raise
        told["died"] = str(error)
    if len(answers) == count:
        why = told.get("died") or "no reason given"
        if told["step"] and not count:
            raise AdapterError(f"{spec}: the process ended {told['step']}: {why}")
        answers.append(_lost(names[0], f"the process ended during this case: {why}"))
        on_case(answers[-1])


def _take(
    line: dict[str, Any], answers: list[CaseResult], told: dict[str, str], on_case: Callable[[CaseResult], None]
) -> None:
    if "error" in line:
        kinds: dict[str, type[MemkitError]] = {"ServerNotFound": ServerNotFound, "ServerError": ServerError}
        raise kinds.get(line["kind"], AdapterError)(line["error"])
    if "case" in line:
        answers.append(CaseResult(**line["case"]))
        on_case(answers[-1])
    else:
        told.update(line)


def _lost(name: str, says: str) -> CaseResult:
    case = next(case for case in CASES if case.name == name)
    return CaseResult(name, "failed", says, case.meaning, case.why, case.fix, 0.0)


def _worker(spec: str, limit_s: float, names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what a worker says, line by line; end it when it says nothing for longer than it may take."""
    # -P: the current directory is looked at by load() alone, or a json.py in it would be memkit's.
    command = [sys.executable, "-P", "-m", "memkit.conformance.worker", spec, str(limit_s), *names]
    environment = os.environ | {"PYTHONPATH": search_path()}
    with tempfile.TemporaryFile() as complaints:
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints, env=environment
        )
        try:
            yield from _lines(worker.stdout, spec, limit_s)
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(ENDING_S)
        finally:
            worker.kill()
            worker.communicate()
        complaints.seek(0)
        last = complaints.read().decode(errors="replace").strip().splitlines()[-1:]
        yield {"died": ", ".join((_end_of(worker.returncode), *last))}


def _end_of(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"signal {-code}"


def _lines(stdout: IO[bytes] | None, spec: str, limit_s: float) -> Iterator[dict[str, Any]]:
    if stdout is None:
        return
    said, patience_s, asked = b"", IMPORT_LIMIT_S, False
    with selectors.DefaultSelector() as selector:
        selector.register(stdout, selectors.EVENT_READ)
        while selector.select(patience_s):
            part = os.read(stdout.fileno(), 65536)
            if not part:
                return
            *lines, said = (said + part).split(b"\n")
            for line in lines:
                yield json.loads(line)
            patience_s, asked = TRIES * limit_s + FIRST_LIMIT_S + READY_WITHIN_S, True
    if not asked:
        raise AdapterError(f"{spec}: the adapter does not import: nothing happened for {patience_s:g} s")

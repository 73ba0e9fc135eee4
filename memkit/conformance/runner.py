"""Run the cases against a store, each within its time limit."""

import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import redis

from memkit.conformance.adapter import AdapterError, StoreAdapter, check_pairs, checked_handle, error_line
from memkit.conformance.case import Case, CaseResult, Outcome
from memkit.conformance.cases.all_cases import CASES
from memkit.conformance.environment import TTL_S, TestEnvironment, attempt
from memkit.conformance.outcomes import CaseFailed, CaseSkipped, Inconclusive
from memkit.conformance.processes import Interpreter, in_thread
from memkit.conformance.result import Result
from memkit.conformance.trial import TrialSession
from memkit.errors import MemkitError, ServerError, ServerNotFound
from memkit.server.launcher import READY_WITHIN_S

CASE_LIMIT_S = 60.0
"""A case takes 0.05 to 5 s; more means that the store hangs."""
IMPORT_LIMIT_S = 120.0
"""For importing the adapter; heavy libraries take 10 s on a busy machine."""
MOST_HANGS = 5
TRIES = 3
"""How often an inconclusive case is run."""
FIRST_CONTACT = "at the first contact: open(), append(), read(), clear(), close()"
CLIENT_CLOCK = (
    "the store computes deadlines from the client's clock, so they are correct only while both clocks agree; this case "
    "therefore moved the keys' deadlines, not the server's clock"
)


class Hung(Exception):
    """The store did not finish within the time limit."""


def run_limited(work: Callable[[], object], limit_s: float) -> object:
    """Do work in a thread; return its result, or what it raised, or Hung. A thread that hangs cannot be ended."""
    with warnings.catch_warnings():
        # A warning of the store is not a wrong answer, also if pytest turns warnings into errors.
        warnings.simplefilter("ignore")
        future = in_thread(work)
        try:
            return future.exception(limit_s) or future.result()
        except TimeoutError:
            return Hung(f"no answer within {limit_s:.3g} s")


def first_contact(env: TestEnvironment, label: str, *, limit_s: float = CASE_LIMIT_S) -> None:
    """Open a session, use it and close it.

    Raises:
        AdapterError: open() raises, a method hangs, messages are no pairs, or the server receives no command; one line.
    """
    steps = ["open()"]
    errors: list[str] = []
    results: list[object] = []

    def work() -> None:
        handle = checked_handle(env.adapter.open(env.server.url, env.new_id("first"), env.ttl(TTL_S)), label)
        for step, method in (
            ("append()", lambda: handle.append("user", "first contact")),
            ("read()", lambda: list(handle.read())),
            ("clear()", handle.clear),
            ("close()", handle.close),
        ):
            steps.append(step)
            # What it raises or forgets the cases report.
            returned = attempt(method)
            if isinstance(returned, list):
                check_pairs(returned, label)
            if isinstance(returned, Exception):
                errors.append(f"; {step} raised {error_line(returned)}")

    env.reset()
    commands = env.commands_of(lambda: results.append(run_limited(work, limit_s)))
    error = results[0]
    if isinstance(error, AdapterError):
        raise error
    if isinstance(error, Hung):
        raise AdapterError(f"{label}: {steps[-1]} hangs: {error}")
    if isinstance(error, BaseException):
        raise AdapterError(f"{label}: {steps[-1]} raised {error_line(error)}")
    if not commands:
        first = "".join(errors[:1])
        raise AdapterError(f"{label}: no command reached the server of the URL that open() was given{first}")


def run_case(case: Case, env: TestEnvironment, *, limit_s: float = CASE_LIMIT_S) -> CaseResult:
    """Run one case on the emptied server."""
    began, env.limit_s = time.monotonic(), limit_s

    def work() -> object:
        env.reset()
        return case.function(env)

    def run_again_if_inconclusive() -> object:
        for _ in range(TRIES):
            found = run_limited(work, limit_s)
            # A store's own time-out without a fault is the machine's as often as the store's.
            if not isinstance(found, Inconclusive | redis.TimeoutError | TimeoutError):
                break
        return found

    if case.needs_ttl and not env.has_ttl:
        found: object = CaseSkipped("the store declares that it has no TTL (has_ttl = False)")
    else:
        found = run_again_if_inconclusive()
    if case.needs_ttl and isinstance(found, CaseFailed) and uses_client_clock(env):
        with env.moving_deadlines():
            found = run_again_if_inconclusive()
        found = found if isinstance(found, BaseException) else CLIENT_CLOCK
    outcome, message, symptom = _outcome(found)
    kept = found.kept if isinstance(found, CaseFailed) else None
    took_s = round(time.monotonic() - began, 3)
    return case.result(outcome, message or case.meaning, took_s=took_s, symptom=symptom, kept=kept)


def uses_client_clock(env: TestEnvironment) -> bool:
    """Return whether the store computes deadlines from its process's clock: a day later, its sessions expire at once.

    The suite moves the server's clock; in production the two agree, so this is not a failure.
    """

    def is_empty() -> bool:
        env.reset()
        env.move_to(env.now_s() + 86_400)
        session = TrialSession(env)
        session.append()
        return not env.read(session.id)

    return env.clock.method == "preload" and run_limited(is_empty, CASE_LIMIT_S) is True


def _outcome(found: object) -> tuple[Outcome, str, str]:
    """Return an outcome, its message and its symptom."""
    if not isinstance(found, BaseException):
        return "passed", str(found or ""), ""
    if isinstance(found, CaseSkipped):
        return "skipped", str(found), ""
    if isinstance(found, Inconclusive):
        return "skipped", f"{found}, {TRIES} times in a row", ""
    if isinstance(found, Hung):
        return "failed", str(found), "hung"
    if isinstance(found, CaseFailed):
        return "failed", str(found), found.symptom
    return "failed", f"raised although no fault was injected: {error_line(found)}", f"raised {type(found).__name__}"


def run_cases(
    adapter: StoreAdapter,
    *,
    spec: str = "",
    cases: Iterable[Case] = CASES,
    limit_s: float = CASE_LIMIT_S,
    on_contact: Callable[[], None] = lambda: None,
    on_case: Callable[[CaseResult], None] = lambda _: None,
) -> Result:
    """Test an adapter in this process, which may have a spec too; the run ends at the first case that hangs."""
    began = time.monotonic()
    results: list[CaseResult] = []
    with TestEnvironment(adapter, spec=spec) as env:
        first_contact(env, spec or type(adapter).__name__, limit_s=limit_s)
        on_contact()
        server = f"{env.server.flavour} {env.server.version} ({env.server.source}), clock by {env.clock.method}"
        for case in cases:
            results.append(run_case(case, env, limit_s=limit_s))
            on_case(results[-1])
            if results[-1].hung:
                env.handles.clear()  # closing those of a store that hung may hang again
                break
    return Result(adapter.name, server=server, cases=tuple(results), took_s=round(time.monotonic() - began, 2))


# The run of the command line: in a process of its own, which may hang or crash


def run(
    spec: str,
    *,
    limit_s: float = CASE_LIMIT_S,
    names: Iterable[str] = (),
    on_case: Callable[[CaseResult], None] = lambda _: None,
) -> Result:
    """Test a store in a process of its own, and return the result of every case.

    Args:
        spec: The adapter's ``package.module:factory``.
        limit_s: Seconds a case may take; one that takes longer fails, and its process is ended.
        names: The cases to run; all by default.
        on_case: Called with each result.

    Raises:
        AdapterError: The adapter cannot be imported, lacks a method, raises in open(), hangs at once or ends its
            process before the first case; one line.
        ServerNotFound: There is no server to start.
    """
    began = time.monotonic()
    chosen = set(names)
    wanted = [case.name for case in CASES if not chosen or case.name in chosen]
    results: list[CaseResult] = []
    about = {"store": spec, "server": "", "step": "while the adapter was imported"}
    while len(results) < len(wanted):
        hangs = sum(case.hung for case in results)
        if hangs == MOST_HANGS:
            results += [_lost(name, f"not run: {hangs} cases hung before it") for name in wanted[len(results) :]]
        else:
            _run_rest(spec, limit_s, wanted[len(results) :], results, about, on_case)
    took_s = round(time.monotonic() - began, 2)
    return Result(about["store"], server=about["server"], cases=tuple(results), took_s=took_s)


def _run_rest(
    spec: str,
    limit_s: float,
    names: list[str],
    results: list[CaseResult],
    about: dict[str, Any],
    on_case: Callable[[CaseResult], None],
) -> None:
    """Run the named cases until the process hangs or ends or all are done; there is a result for at least one."""
    count, patience_s, error, ends_within_s = len(results), IMPORT_LIMIT_S, "", 0.0
    worker = Interpreter(spec, str(limit_s), *names)
    try:
        while line := worker.receive(patience_s):
            patience_s = (TRIES + 1) * limit_s + READY_WITHIN_S
            if "error" in line:
                kinds: dict[str, type[MemkitError]] = {"ServerNotFound": ServerNotFound, "ServerError": ServerError}
                if not count:
                    raise kinds.get(line["kind"], AdapterError)(line["error"])
                error = line["error"]
            elif "case" in line:
                results.append(CaseResult(**line["case"]))
                on_case(results[-1])
            else:
                about.update(line)
        ends_within_s = READY_WITHIN_S
    except TimeoutError:
        if patience_s == IMPORT_LIMIT_S and not count:
            raise AdapterError(
                f"{spec}: the adapter cannot be imported: nothing happened for {patience_s:g} s"
            ) from None
        error = f"nothing happened for {patience_s:g} s"
    finally:
        ended = worker.stop(within_s=ends_within_s)
    if len(results) == count:
        if about["step"] and not count:
            raise AdapterError(f"{spec}: the process ended {about['step']}: {error or ended}")
        results.append(_lost(names[0], f"the process ended during this case: {error or ended}"))
        on_case(results[-1])


def _lost(name: str, message: str) -> CaseResult:
    return next(case for case in CASES if case.name == name).result("failed", message)

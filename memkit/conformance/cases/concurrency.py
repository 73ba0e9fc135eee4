"""Cases of concurrency: many writers, a restart of the server, and what an append to a long dialogue costs."""

import contextlib
import multiprocessing
import re
import time
from collections import Counter
from functools import partial
from threading import Barrier, BrokenBarrierError

from memkit.conformance.adapter import error_line
from memkit.conformance.case import case
from memkit.conformance.cases.expiry import WEEK_S
from memkit.conformance.environment import MARGIN_S, TestEnvironment, attempt, messages_of
from memkit.conformance.outcomes import CaseFailed, CaseSkipped, Symptom
from memkit.conformance.processes import LONGEST_S, ForkedProcess, in_thread, in_threads, outcome, works_when_forked
from memkit.conformance.trial import TrialSession, difference
from memkit.render import counted

PROCESSES, THREADS, APPENDS = 4, 2, 50
WRITERS = PROCESSES * THREADS
NEW_SESSIONS = 6
"""Sessions that all writers begin at the same time, before their appends to the common one."""
WRITES_FOR = 0.5
"""The part of a case's time limit in which the writers append; a store that needs longer is not judged."""
WRITTEN = re.compile(r"writer \d+ number \d+")
Write = tuple[int, str, str]
"""An append of a writer: the number of the session, the text, and the error, if any."""
MEASURED_AT = (10, 500)
MEASURED_APPENDS = 5
GROWS_FOR_S = 5.0
ABOVE_LINEAR = 3.0
"""An append at 500 messages that costs this many times one at 10: all appends together cost more than linearly."""
SMALL_APPEND_BYTES = 200
"""An append costs at least this much on the network; growth below it is noise."""


@case(
    why="Two workers answer the same user: each reads, extends, writes back; the later one erases the other's message.",
    fix="Append on the server (RPUSH, XADD, a script), or WATCH and try again; a lock in the process does not exclude "
    "the other worker.",
)
def eight_writers(env: TestEnvironment) -> str:
    """8 writers at once (4 processes, 2 threads each), to new sessions, then 50 appends each: none lost, none twice."""
    sessions = [TrialSession(env), *(TrialSession(env, "new") for _ in range(NEW_SESSIONS))]
    sessions[0].handle  # noqa: B018  # opened before the writers start
    writes: list[Write] = []
    wrong_reads: list[str] = []
    forked = works_when_forked(env)
    gates = [multiprocessing.get_context("fork").Barrier(WRITERS) if forked else Barrier(WRITERS) for _ in sessions]
    if forked:
        processes = [ForkedProcess(partial(_write, sessions, gates, number)) for number in range(PROCESSES)]
        deadline = time.monotonic() + LONGEST_S
        try:
            while not all(one.is_done(within_s=0) for one in processes) and time.monotonic() < deadline:
                wrong_reads += _wrong_read(sessions[0])
            writes = [write for one in processes for write in one.result()]
        finally:
            for one in processes:
                one.kill()
    else:
        in_threads([lambda one=one: writes.extend(_write(sessions, gates, one)) for one in range(PROCESSES)])  # type: ignore[misc]
    errors = [error for _, _, error in writes if error]
    example = f", such as {errors[0]}" if errors else ""
    try:
        for number, session in enumerate(sessions):
            stored = [text for at, text, error in writes if at == number and not error]
            raised = [text for at, text, error in writes if at == number and error]
            read = [text for _, text in env.read(session.id)]
            _expect_all_once(env, stored, raised, read, " who begin a session" if number else "")
        if wrong_reads:
            raise CaseFailed(f"read while others write: {wrong_reads[0]}")
        if errors and len(errors) == len(writes):
            raise CaseFailed(f"all {len(errors)} appends of 8 writers raised{example}")
    except CaseFailed:
        _skip_if_wrong_in_turn(env)
        raise
    all_appends = WRITERS * (NEW_SESSIONS + APPENDS)
    if len(writes) < all_appends:
        within_s = env.limit_s * WRITES_FOR
        raise CaseSkipped(f"not judged: {len(writes)} of {all_appends} appends ended within {within_s:g} s, none lost")
    return f"{len(errors)} of {len(writes)} appends raised{example}" if errors else ""


def _write(sessions: list[TrialSession], gates: list[Barrier], process: int) -> list[Write]:
    done: list[Write] = []
    names = [f"writer {process * THREADS + thread}" for thread in range(THREADS)]
    in_threads([partial(_writer, sessions, gates, name, done) for name in names])
    return done


def _writer(sessions: list[TrialSession], gates: list[Barrier], name: str, done: list[Write]) -> None:
    env = sessions[0].env
    until = time.monotonic() + env.limit_s * WRITES_FOR
    for at in (*range(1, len(sessions)), 0):
        try:
            handle = sessions[at].open_again()
        except BaseException:
            for gate in gates:
                gate.abort()  # the other writers do not wait for this one
            raise
        attempt(partial(messages_of, handle))  # connects
        with contextlib.suppress(BrokenBarrierError):
            gates[at].wait(until - time.monotonic())  # so that all writers start at once
        for number in range(1 if at else APPENDS):
            if time.monotonic() > until:
                break
            text = f"{name} number {number}"
            result = attempt(partial(handle.append, "user", text))
            done.append((at, text, error_line(result) if isinstance(result, Exception) else ""))


def _writer_and_number(text: str) -> tuple[str, int]:
    writer, _, number = text.rpartition(" number ")
    return writer, int(number)


def _by_writer(texts: list[str]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for writer, number in map(_writer_and_number, texts):
        numbers.setdefault(writer, []).append(number)
    return numbers


def _wrong_read(session: TrialSession) -> list[str]:
    """Read while others write: a writer's messages are there in order, each once."""
    read = attempt(partial(messages_of, session.handle))
    if isinstance(read, Exception):
        return []  # a reader may raise; it may not be wrong
    # What no writer appended is reported at the end.
    for writer, numbers in _by_writer([text for _, text in read if WRITTEN.fullmatch(text)]).items():
        if numbers != sorted(set(numbers)):
            return [f"the last messages of {writer} are numbers {numbers[-5:]}"]
    return []


def _expect_all_once(env: TestEnvironment, stored: list[str], raised: list[str], read: list[str], which: str) -> None:
    unknown = set(read) - set(stored) - set(raised)
    if unknown:
        raise CaseFailed(f"{counted(len(unknown), 'message')} read that no writer appended, such as {min(unknown)!r}")
    counts, by_writer = Counter(read), _by_writer(read)
    lost = [text for text in stored if not counts[text]]
    if env.window and len(read) >= min(env.window, len(stored)):
        # The oldest are dropped on purpose: a loss is what is missing after a kept message of the same writer.
        oldest = {writer: numbers[0] for writer, numbers in by_writer.items()}
        lost = [text for text in lost if _writer_and_number(text)[1] > oldest.get(_writer_and_number(text)[0], APPENDS)]
    twice = [text for text in counts if counts[text] > 1]
    if lost:
        message = f"{len(lost)} of {len(stored)} acknowledged messages of 8 writers{which} are lost"
        raise CaseFailed(f"{message}, such as {lost[0]!r}", symptom=Symptom.LOST)
    if twice:
        raise CaseFailed(f"{len(twice)} messages of 8 writers{which} are stored more than once, such as {twice[0]!r}")
    for writer, numbers in by_writer.items():
        if numbers != sorted(numbers):
            raise CaseFailed(f"the messages of {writer} are not in the order in which it wrote them")


def _skip_if_wrong_in_turn(env: TestEnvironment) -> None:
    """Raise CaseSkipped if the store is wrong without concurrency too: then another case reports it."""
    until = time.monotonic() + env.limit_s * (1 - WRITES_FOR) / 2
    for appends in (1, APPENDS):
        session = TrialSession(env, "in-turn")
        handles = [session.open_again() for _ in range(WRITERS)]
        try:
            for number in range(appends * WRITERS):
                if time.monotonic() < until:
                    session.append_fast(by=handles[number % WRITERS])
            read = env.read(session.id)
        except Exception as error:  # noqa: BLE001  # reported by other cases
            raise CaseSkipped(f"not judged: 8 writers in turn already fail: {error_line(error)}") from None
        if read != session.expected:
            wrong = difference(session.expected, read)
            raise CaseSkipped(f"not judged: 8 writers in turn already fail: {wrong}")


@case(
    why="After a restart the bot remembers what Redis kept, or it has been answering from another place.",
    fix="Keep nothing in the process; send a script again if the server has lost it (NOSCRIPT); reconnect or raise.",
)
def restart(env: TestEnvironment) -> str:
    """After the server was killed and started again (AOF), every acknowledged message is there, with its deadline."""
    with TestEnvironment(env.adapter, persist=True) as other:
        other.reset()
        session, twin = TrialSession(other, ttl_s=WEEK_S), TrialSession(other, ttl_s=WEEK_S)
        for number in range(6):
            (session, twin)[number % 2].append(role=("user", "assistant")[number // 2 % 2])
        session.expect("before the restart", by=session.handle)
        session.append_by_new_client()
        other.server.kill()
        new = TrialSession(other, ttl_s=WEEK_S)
        reading = in_thread(lambda: messages_of(session.handle))
        writing = {one: in_thread(lambda one=one: one.handle.append("user", "while down")) for one in (twin, new)}  # type: ignore[misc]
        for future in (reading, *writing.values()):
            outcome(future, within_s=0.2)
        other.server.start()
        other.control.close()
        other.control = other.control_client()
        read = outcome(reading)
        if isinstance(read, list) and read != session.expected:
            message = f"while the server was down read() did not raise: {difference(session.expected, read)}"
            raise CaseFailed(message, symptom=Symptom.ERROR_HIDDEN)
        for one, future in writing.items():
            acknowledged = outcome(future) is None
            now, with_it = other.read(one.id, WEEK_S), [*one.messages, ("user", "while down")]
            if now not in (one.expected, other.kept(with_it)):
                raise one.failure("after the restart", now)
            if acknowledged and now != other.kept(with_it):
                raise CaseFailed("an append reported a message as stored while the server was down; it is not there")
            one.messages = now
        return _after_restart(session, twin)


def _after_restart(session: TrialSession, twin: TrialSession) -> str:
    env, text = session.env, "after the restart"
    session.expect(text)
    errors = [error for _ in range(3) if (error := session.try_append(text)) is not None]
    read = env.read(session.id, WEEK_S)
    found = [one for _, one in read].count(text)
    if found not in range(min(3 - len(errors), env.window or 3), 4):
        wrong = difference(session.expected, read)
        raise CaseFailed(f"appended 3 times after the restart, {len(errors)} raised: {wrong}")
    session.messages = read
    if env.has_ttl:
        when = f"{MARGIN_S:g} s before the deadline, after a restart"
        session.expect_until(WEEK_S, when, since=twin.appended_at)
        twin.expect_empty_after(WEEK_S, f"{MARGIN_S:g} s after the deadline, after a restart")
    if len(errors) < 3:
        return ""
    return f"a handle that was open during the restart raises at every append: {error_line(errors[-1])}"


@case(
    why="An append that moves the whole dialogue costs more with each turn; long dialogues time out first.",
    fix="Append to a list or stream; do not read and write back the whole dialogue.",
)
def growth(env: TestEnvironment) -> str:
    """What an append costs does not grow with the dialogue, from 10 to 500 messages (a remark, not a failure)."""
    session, began = TrialSession(env), time.monotonic()
    costs = []
    for target in MEASURED_AT:
        # A slow store is measured at the length that it has reached.
        while len(session.messages) < target - MEASURED_APPENDS and time.monotonic() < began + GROWS_FOR_S:
            session.append_fast("a message of a usual length, some eighty characters of text as people write them")
        session.append_fast()
        idle = _traffic(env)
        before = _traffic(env)
        for _ in range(MEASURED_APPENDS):
            session.append_fast("measured")
        # Without the suite's own traffic, which the first two readings show.
        costs.append(
            tuple(
                max(0, last - then - (then - first)) / MEASURED_APPENDS
                for first, then, last in zip(idle, before, _traffic(env), strict=True)
            )
        )
    (commands, volume), (commands_later, volume_later) = costs
    little = commands_later < ABOVE_LINEAR * max(commands, 1)
    if little and volume_later < ABOVE_LINEAR * max(volume, SMALL_APPEND_BYTES):
        return ""
    return (
        f"warning: grows above linearly: an append is {commands:.0f} commands and {volume:,.0f} bytes "
        f"at {MEASURED_AT[0]} messages, {commands_later:.0f} commands and {volume_later:,.0f} bytes at "
        f"{len(session.messages)}"
    )


def _traffic(env: TestEnvironment) -> tuple[int, int]:
    """Return the commands and bytes that the server has handled."""
    stats = env.control.info("stats")
    commands = sum(one["calls"] for one in env.control.info("commandstats").values())
    return commands, stats["total_net_input_bytes"] + stats["total_net_output_bytes"]

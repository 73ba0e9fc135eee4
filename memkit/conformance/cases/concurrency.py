# the docstring of a case is its meaning: a sentence about the store
"""Cases: many writers, a restart, and what a long talk costs."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from functools import partial
from typing import Any

from memkit.conformance.adapter import Handle, one_line
from memkit.conformance.case import Case, case
from memkit.conformance.cases.expiry import WEEK_S
from memkit.conformance.environment import MARGIN_S, Bench, messages_of
from memkit.conformance.outcomes import Forgot
from memkit.conformance.processes import LONGEST_S, Child, Waiting, together, works_when_forked
from memkit.conformance.trial import Talk, difference

PROCESSES, THREADS, APPENDS = 4, 2, 50
WRITERS = PROCESSES * THREADS
NEWCOMERS = 6
"""New sessions that all writers begin at the same time, before their appends to the common one."""
GATES, GATE_LIMIT_S = 15, 3
"""The database in which the writers wait for each other, and seconds that they do."""
Done = dict[str, list[Any]]
"""What a writer's process did: stored and raised, each (number of the session, text), and errors."""
MEASURED_AT = (10, 500)
MEASURED_APPENDS = 5
GROWS_FOR_S = 5.0
ABOVE_LINEAR = 3.0
"""A write at 500 messages that costs this many times one at 10: the whole talk costs more than its length."""


@case(
    why="Two workers answer the same user: each reads, extends, writes back; the later one erases the other's message.",
    fix="Append on the server (RPUSH, XADD, a script), or WATCH and try again; a lock in the process is unknown "
    "to the other worker.",
)
def eight_writers(bench: Bench) -> str:
    """8 writers at once (4 processes, 2 threads each), to new sessions, then 50 appends each: none lost, none twice."""
    talks = [Talk(bench), *(Talk(bench, "begun-by-all") for _ in range(NEWCOMERS))]
    talks[0].handle  # noqa: B018  # opened before the crowd comes
    outcomes, torn = _crowd(talks) if works_when_forked(bench) else (_crowd_of_threads(talks), "")
    stored, raised = ([said for outcome in outcomes for said in outcome[what]] for what in ("stored", "raised"))
    for number, talk in enumerate(talks):
        kept, refused = ([text for session, text in said if session == number] for said in (stored, raised))
        read = [text for _, text in bench.read(talk.id)]
        _expect_all_once(kept, refused, read, " who begin a session" if number else "")
    if torn:
        raise Forgot(f"read while others write: {torn}")
    such = next((f", such as {outcome['errors'][0]}" for outcome in outcomes if outcome["errors"]), "")
    if not stored:
        raise Forgot(f"all {len(raised)} appends of 8 writers raised{such}")
    return f"{len(raised)} of {len(raised) + len(stored)} appends raised{such}" if raised else ""


def _crowd(talks: list[Talk]) -> tuple[list[Done], str]:
    """Write in other processes and read meanwhile; return what they did, and what was wrong with a read."""
    children = [Child(partial(_write, talks, process)) for process in range(PROCESSES)]
    torn: list[str] = []
    deadline = time.monotonic() + LONGEST_S
    try:
        while not all(child.done(within_s=0) for child in children) and time.monotonic() < deadline:
            torn += _torn(talks[0])
        return [child.result() for child in children], "".join(torn[:1])
    finally:
        for child in children:
            child.kill()


def _crowd_of_threads(talks: list[Talk]) -> list[Done]:
    outcomes: list[Done] = []
    together([lambda process=process: outcomes.append(_write(talks, process)) for process in range(PROCESSES)])  # type: ignore[misc]
    return outcomes


def _write(talks: list[Talk], process: int) -> Done:
    done: Done = {"stored": [], "raised": [], "errors": []}
    together([partial(_writer, talks, f"writer {process * THREADS + thread}", done) for thread in range(THREADS)])
    return done


def _writer(talks: list[Talk], name: str, done: Done) -> None:
    with talks[0].bench.in_db(GATES) as gates:
        for session in (*range(1, len(talks)), 0):
            handle = talks[session].reopened()
            with contextlib.suppress(Exception):
                messages_of(handle)  # connected, and the session seen as it is
            _meet(gates, session)
            for number in range(1 if session else APPENDS):
                _append(handle, (session, f"{name} number {number}"), done)


def _append(handle: Handle, said: tuple[int, str], done: Done) -> None:
    try:
        handle.append("user", said[1])
    except Exception as error:  # noqa: BLE001  # then it is not counted as stored
        done["raised"].append(said)
        done["errors"].append(one_line(error))
    else:
        done["stored"].append(said)


def _meet(gates: Any, number: int) -> None:
    """Wait for the other writers, so that all go on at once; not for long, since one may have failed."""
    if gates.incr(f"gate-{number}") == WRITERS:
        gates.rpush(f"open-{number}", *range(WRITERS))
    gates.blpop([f"open-{number}"], timeout=GATE_LIMIT_S)


def _by_writer(texts: list[str]) -> dict[str, list[int]]:
    numbers: dict[str, list[int]] = {}
    for text in texts:
        writer, _, number = text.rpartition(" number ")
        numbers.setdefault(writer, []).append(int(number))
    return numbers


def _torn(talk: Talk) -> list[str]:
    """Say what is wrong with a read beside writers: a writer's messages are there up to some point, in order."""
    try:
        read = messages_of(talk.handle)
    except Exception:  # noqa: BLE001  # a reader may raise; it may not be wrong
        return []
    for writer, numbers in _by_writer([text for _, text in read]).items():
        if numbers != sorted(set(numbers)):
            return [f"{writer} has said {numbers[-5:]}, at the end, in this order"]
    return []


def _expect_all_once(stored: list[str], raised: list[str], read: list[str], who: str) -> None:
    counts = Counter(read)
    lost = [text for text in stored if not counts[text]]
    twice = [text for text in counts if counts[text] > 1]
    if lost:
        seen = f"{len(lost)} of {len(stored)} acknowledged messages of 8 writers{who} are lost"
        raise Forgot(f"{seen}, such as {lost[0]!r}")
    if twice:
        raise Forgot(f"{len(twice)} messages of 8 writers{who} are stored more than once, such as {twice[0]!r}")
    strange = set(read) - set(stored) - set(raised)
    if strange:
        raise Forgot(f"{len(strange)} messages are read that nobody wrote, such as {min(strange)!r}")
    for writer, numbers in _by_writer(read).items():
        if numbers != sorted(numbers):
            raise Forgot(f"the messages of {writer} are not in the order in which it wrote them")


@case(
    why="After a restart the bot remembers what Redis kept, or it has been answering from somewhere else.",
    fix="Keep nothing in the process; send a script again when the server has lost it (NOSCRIPT); reconnect or raise.",
)
def restart(bench: Bench) -> str:
    """After the server was killed and started again (AOF), every acknowledged message is there, with its deadline."""
    with Bench(bench.adapter, persist=True) as other:
        other.begin()
        talk, twin = Talk(other, ttl_s=WEEK_S), Talk(other, ttl_s=WEEK_S)
        for number in range(6):
            (talk, twin)[number % 2].say(role=("user", "assistant")[number // 2 % 2])
        talk.expect("before the restart", by=talk.handle)
        talk.say_elsewhere()
        other.server.kill()
        new = Talk(other, ttl_s=WEEK_S)
        reading = Waiting(lambda: messages_of(talk.handle))
        writing = {session: Waiting(partial(_say_while_down, session)) for session in (twin, new)}
        for waiting in (reading, *writing.values()):
            waiting.result(within_s=0.2)
        other.restarted()
        read = reading.result(within_s=5.0)
        if isinstance(read, list) and read != talk.said:
            raise Forgot(f"while the server was down read() did not raise: {difference(talk.said, read)}")
        for session, waiting in writing.items():
            _expect_no_lie(session, acknowledged=waiting.result(within_s=5.0) is None)
        return _after_restart(other, talk, twin)


def _say_while_down(talk: Talk) -> None:
    talk.handle.append("user", "said while down")


def _expect_no_lie(talk: Talk, *, acknowledged: bool) -> None:
    now = talk.bench.read(talk.id, WEEK_S)
    with_it = [*talk.said, ("user", "said while down")]
    if now not in (talk.said, with_it):
        raise Forgot(f"after the restart: {difference(talk.said, now)}")
    if acknowledged and now != with_it:
        raise Forgot("an append said that it stored a message while the server was down; it is not there")
    talk.said = now


def _after_restart(bench: Bench, talk: Talk, twin: Talk) -> str:
    talk.expect("after the restart")
    errors = [error for _ in range(3) if (error := talk.tried("said after the restart")) is not None]
    read = bench.read(talk.id, WEEK_S)
    texts = [text for _, text in read]
    if texts.count("said after the restart") not in range(3 - len(errors), 4):
        raise Forgot(f"appended 3 times after the restart, {len(errors)} raised: {difference(talk.said, read)}")
    talk.said = read
    if bench.has_ttl:
        talk.expect_until(WEEK_S, f"{MARGIN_S:g} s before the deadline, after a restart", since=twin.said_at)
        twin.expect_gone_after(WEEK_S, f"{MARGIN_S:g} s after the deadline, after a restart")
    return (
        f"a handle that was open during the restart raises for good: {one_line(errors[-1])}" if len(errors) == 3 else ""
    )


@case(
    why="A write that moves the whole talk makes each turn dearer than the last; long talks time out first.",
    fix="Append to a list or stream; do not read and write back the whole dialogue.",
)
def growth(bench: Bench) -> str:
    """What an append costs does not grow with the talk, from 10 to 500 messages (a remark, not a failure)."""
    talk, began = Talk(bench), time.monotonic()
    costs = []
    for target in MEASURED_AT:
        # A store that is slow is measured where it has come to.
        while len(talk.said) < target - MEASURED_APPENDS and time.monotonic() < began + GROWS_FOR_S:
            talk.say("a message of a usual length, some eighty characters of text as people write them")
        costs.append(_cost(bench, talk))
    (commands, volume), (commands_later, volume_later) = costs
    if commands_later < ABOVE_LINEAR * max(commands, 1) and volume_later < ABOVE_LINEAR * max(volume, 200):
        return ""
    return (
        f"warning: grows above linearly: an append is {commands:.0f} commands and {volume:,.0f} bytes "
        f"at {MEASURED_AT[0]} messages, {commands_later:.0f} commands and {volume_later:,.0f} bytes at {len(talk.said)}"
    )


def _cost(bench: Bench, talk: Talk) -> tuple[float, float]:
    """Return commands and bytes on the wire of one append, the suite's own traffic taken off."""
    handle = talk.handle
    handle.append("user", "warm")
    talk.said.append(("user", "warm"))
    idle = _traffic(bench)
    before = _traffic(bench)
    for _ in range(MEASURED_APPENDS):
        handle.append("user", "measured")
        talk.said.append(("user", "measured"))
    after = _traffic(bench)
    own = [b - a for a, b in zip(idle, before, strict=True)]
    commands, volume = (max(0, c - b - o) / MEASURED_APPENDS for b, c, o in zip(before, after, own, strict=True))
    return commands, volume


def _traffic(bench: Bench) -> tuple[int, int]:
    stats = bench.control.info("stats")
    calls = bench.control.info("commandstats")
    commands = sum(one["calls"] for one in calls.values())
    return commands, stats["total_net_input_bytes"] + stats["total_net_output_bytes"]


CASES: tuple[Case, ...] = (eight_writers, restart, growth)

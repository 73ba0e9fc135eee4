# the docstring of a case is its meaning: a sentence about the store
"""Cases: a session is its own, wherever it is seen from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from memkit.conformance.adapter import Handle, Messages, one_line
from memkit.conformance.case import Case, case
from memkit.conformance.environment import MARGIN_S, TTL_S, Bench
from memkit.conformance.fresh_process import Fresh, NotStarted
from memkit.conformance.keyspace import Belongings, holds, shown
from memkit.conformance.outcomes import Forgot, NotAsked
from memkit.conformance.processes import in_process, works_when_forked
from memkit.conformance.trial import Talk, alive_before, difference

LONG_ID = "tenant-" + "0123456789" * 29
IDS = (
    *("user", "User", "USER", "user1", "user10", "user11", "1user", "use", "suser"),
    *("user:1", "user_1", "user-1", "user.1", "user/1", "user|1", "user#1", "user@1", "user=1", "user;1"),
    *("user:", ":user", "user::1", "user:1:", "user:1:2", "user 1", "user  1", "user+1", "user%201"),
    *("user,1", "user,2", "1,user", "user ", " user", "user\t", "user\n", "user\x00"),
    *("user*", "user?", "use[r]", "us?r", "[a-z]*", "*", "?", "user\\*", "user^", "user$", "[^a]", "{user}", "{user}1"),
    *("us{er}", "{}user", "}{user", "{user", "'user'", '"user"', "../user", "user/..", "~user", "<user>", "(user)"),
    *("1", "01", "1.0", "-1", "0", "None", "null", "true", "[]"),
    *("caf\u00e9", "cafe\u0301", "cafe", "\ufb01", "fi", "stra\u00dfe", "strasse", "\uff21", "A", "a", "\u0130", "i"),
    *("👋", "👋🏽", "user\u200b", "Привет", "привет", LONG_ID + "1", LONG_ID + "2", "1" + LONG_ID, "2" + LONG_ID),
)
UNWRITTEN = ("us", "us*", "u*r", "user[0-9]", "??er", "user1?", "use*", "User1", "user:2", "{user}2", "a*", "nobody")
VICTIMS = (
    "user",
    "user1",
    "user*",
    "us?r",
    "use[r]",
    "*",
    "[a-z]*",
    "user,1",
    "User",
    "{user}",
    "user:1",
    "cafe\u0301",
    "user ",
)
FOREIGN = "memkit-foreign"
OTHER_DATABASE = 3
STARTS_WITHIN = 0.6
"""The part of a case's time in which Python has to start and import the adapter; else it is not asked so."""


def _written(bench: Bench, ids: Iterable[str]) -> tuple[list[Talk], dict[str, str]]:
    """Write three messages to each id; give back the sessions, and what was raised for ids that the store refuses.

    The second and third are the same in every session: what is shared by content is not anybody's.
    """
    talks, refused = [], {}
    for session_id in ids:
        talk = Talk(bench, session_id=session_id)
        try:
            talk.say(f"only for {session_id!r}")
        except Exception as error:  # noqa: BLE001  # refusing an id aloud mixes nothing up
            refused[session_id] = one_line(error)
        else:
            talks.append(talk)
    if len(talks) < len(refused):
        raise Forgot(
            f"{len(refused)} of {len(refused) + len(talks)} ids are refused, such as {next(iter(refused.items()))}"
        )
    for message in (("assistant", "the same in every session"), ("user", "and the same once more")):
        for talk in talks:
            _say_more(talk, *message)
    return talks, refused


def _say_more(talk: Talk, role: str, text: str) -> None:
    try:
        talk.handle.append(talk.role(role), text)
    except Exception as error:  # noqa: BLE001  # an id is refused at once, or not
        raise Forgot(f"the session {talk.id!r} beside others: append() raises {one_line(error)}") from None
    talk.said.append((talk.role(role), text))


def _accepted(bench: Bench, session_id: str) -> bool:
    try:
        bench.open(session_id)
    except Exception:  # noqa: BLE001  # refusing an id aloud mixes nothing up
        return False
    return True


def _remark(bench: Bench, refused: dict[str, str]) -> str:
    """Say which ids are refused, after all else: an id that is refused is refused on an empty server too."""
    bench.delete_all_keys()
    for session_id, error in refused.items():
        alone = Talk(bench, session_id=session_id)
        if alone.tried("alone") is None:
            raise Forgot(f"the session {session_id!r} beside others: append() raises {error}; alone it does not")
        stored: Messages = []
        with contextlib.suppress(Exception):
            stored = bench.read(session_id)
        if stored:
            raise Forgot(f"the session {session_id!r} is refused ({error}), and its message is stored")
    return f"refuses {len(refused)} ids, aloud: {', '.join(map(repr, refused))[:200]}" if refused else ""


@case(
    why="Two ids that share a memory show one person the other's talk.",
    fix="Use the id as it is in the key: no case folding, stripping, normalising, slug, truncation, and no tag or "
    "pattern query in which *, ?, [, {, or a comma mean something.",
)
def ids_apart(bench: Bench) -> str:
    """Ids that differ in case, by a suffix, a separator, white space, an accent or far behind have memories apart."""
    talks, refused = _written(bench, IDS)
    for talk in talks:
        talk.expect(f"the session {talk.id[:40]!r} beside {len(talks) - 1} others")
    return _remark(bench, refused)


@case(
    why="A new user who is shown somebody else's memory is the worst day of a chat service.",
    fix="Read by the exact key, never by KEYS, SCAN MATCH or a query that the id is pasted into.",
)
def ids_are_no_patterns(bench: Bench) -> None:
    """An id that was never written reads as empty, also when it would match others as a pattern or prefix."""
    _written(bench, IDS[:36])
    for session_id in UNWRITTEN:
        talk = Talk(bench, session_id=session_id)
        if _accepted(bench, session_id):
            talk.expect_gone(f"the session {session_id!r}, never written,")


@case(
    why="What clear() leaves behind is private data that its owner believes deleted, and it comes back one day.",
    fix="Delete every key of the session (and its entry in any index) in one MULTI or script.",
)
def clear_all_of_it(bench: Bench) -> None:
    """clear() removes everything of the session, for every client, and the session can begin anew."""
    belongings = Belongings(bench)
    talk = Talk(bench)
    witness = talk.reopened()
    for number in range(5):
        talk.say(f"a secret {number} for {talk.id}")
    talk.expect("before clear()", by=witness)
    talk.handle.clear()
    talk.expect_gone("after clear(), read by the same handle", by=talk.handle)
    talk.expect_gone("after clear(), read by a handle opened before", by=witness)
    talk.expect_gone("after clear(), read by another client")
    belongings.expect_none("after clear()")
    if holds(bench.control, f"a secret 4 for {talk.id}".encode()):
        raise Forgot("after clear(), the text of a message is still stored in a key that sessions share")
    talk.said.clear()
    talk.say("a new beginning", by=witness)
    talk.expect("said after clear()")
    talk.expect("said after clear(), read by the handle that cleared", by=talk.handle)
    belongings.expect_mortal("a session written again after clear()")


@case(
    why="Clearing user 1 clears users 10 to 19 too: memory is gone that nobody asked to delete.",
    fix="Delete the session's own keys by name; no KEYS or SCAN MATCH with the id in the pattern, no FLUSHDB.",
)
def clear_nobody_else(bench: Bench) -> str:
    """clear() touches no neighbour: not one whose id begins alike or matches as a pattern, nor foreign keys."""
    talks, refused = _written(bench, IDS)
    for database in (0, OTHER_DATABASE):
        with bench.in_db(database) as client:
            client.set(FOREIGN, "not the store's")
    deadlines = {key: bench.deadline_ms(key) for key in sorted(bench.keys())}
    victims = {talk.id: talk for talk in talks if talk.id in VICTIMS}
    for session_id in (*UNWRITTEN, *victims):
        if _accepted(bench, session_id):
            bench.open(session_id).clear()
        _expect_foreign_keys(bench, session_id)
    for talk in talks:
        if talk.id in victims:
            talk.expect_gone(f"after clear(), the session {talk.id!r}")
        else:
            talk.expect(f"the session {talk.id[:40]!r} after clear() of {len(victims)} others")
    _expect_deadlines(bench, deadlines)
    return _remark(bench, refused)


def _expect_foreign_keys(bench: Bench, session_id: str) -> None:
    for database in (0, OTHER_DATABASE):
        with bench.in_db(database) as client:
            if not client.exists(FOREIGN):
                raise Forgot(
                    f"clear() of the session {session_id!r} deleted another program's key in database {database}"
                )


def _expect_deadlines(bench: Bench, before: dict[tuple[int, bytes], int | None]) -> None:
    for key in sorted(bench.keys() & before.keys()):
        was, now = before[key], bench.deadline_ms(key)
        if was is not None and (now is None or now < was - MARGIN_S * 1000):
            raise Forgot(f"clear() of other sessions changed the deadline of the key {shown(key)}")


@case(
    why="A worker that answers from its own copy has forgotten what the other worker was told a second ago.",
    fix="Read from Redis at every read(), write to it before append() returns; if you cache, check a version in Redis.",
)
def second_client(bench: Bench) -> str:
    """What one client stores all others see at once: in this process, a fork, or (imported by its name) a fresh one."""
    # Started first: Python and the adapter's imports take their time.
    fresh = Fresh(bench.spec) if bench.spec else None
    try:
        talk, remark = _among_clients(bench)
        return "; ".join(filter(None, (remark, _in_a_fresh_process(talk, fresh))))
    finally:
        if fresh:
            fresh.stop()


def _among_clients(bench: Bench) -> tuple[Talk, str]:
    talk = Talk(bench)
    early = talk.reopened()
    talk.expect_gone("before the first message", by=early)
    talk.say()
    talk.expect("seen by a handle opened before", by=early)
    talk.say(role="assistant", by=early)
    talk.expect("seen by the first handle", by=talk.handle)
    talk.say(by=talk.reopened())
    talk.expect("seen by the first handle", by=talk.handle)
    if not works_when_forked(bench):
        return talk, "not asked from a forked process: the store does not answer in one"
    _say_elsewhere(talk)
    for name, handle in (("the first handle", talk.handle), ("a handle opened before", early), ("a new handle", None)):
        talk.expect(f"written by another process, read by {name}", by=handle)
    return talk, ""


def _in_a_fresh_process(talk: Talk, fresh: Fresh | None) -> str:
    if fresh is None:
        return "another process is a fork here: a fresh one imports the adapter by package.module:factory"
    role, text = talk.role("user"), f"from a fresh process to {talk.id}"
    try:
        job = {"url": talk.bench.url, "session_id": talk.id, "ttl_s": talk.bench.ttl(), "role": role, "text": text}
        read = fresh.read_and_append(limit_s=talk.bench.limit_s * STARTS_WITHIN, **job)
    except NotStarted as error:
        return f"not asked from a fresh process: {error}"
    if read != talk.said:
        raise Forgot(f"read by a process that was started anew: {difference(talk.said, read)}")
    talk.said.append((role, text))
    talk.expect("written by a process that was started anew, read by the first handle", by=talk.handle)
    return ""


def _say_elsewhere(talk: Talk) -> None:
    text = f"from another process to {talk.id}"

    def work() -> None:
        handle = talk.reopened()
        handle.append("user", text)
        handle.close()

    in_process(work)
    talk.said.append(("user", text))


@case(
    why="A copy outlives its original: the bot remembers what was deleted, expired or evicted, until it restarts.",
    fix="Keep no messages in the process; or check on every read that the session in Redis is still the one copied.",
)
def no_private_copy(bench: Bench) -> None:
    """When the session is gone from Redis, no handle still shows it, and none brings it back."""
    talk = Talk(bench)
    for _ in range(3):
        talk.say()
    talk.expect("an ordinary session", by=talk.handle)
    bench.delete_all_keys()
    talk.expect_gone("gone from Redis, read by the open handle", by=talk.handle)
    talk.expect_gone("gone from Redis, read by a new handle")
    talk.said.clear()
    talk.say("a new beginning")
    talk.expect("written after it was gone")
    talk.expect("written after it was gone, read by the open handle", by=talk.handle)


@case(
    why="A TTL that sessions share forgets a quiet user because of a busy one, or keeps everybody for ever.",
    fix="Give each session keys (or hash fields) with a TTL of their own.",
    needs_ttl=True,
)
def lifetimes_apart(bench: Bench) -> None:
    """Each session lives by its own TTL, whatever is written to the others meanwhile."""
    quiet, busy = Talk(bench, "user1"), Talk(bench, "user10")
    durable, brief = Talk(bench, "durable", 7 * 86_400.0), Talk(bench, "brief", 300.0)
    # All are opened before any is written to: what handles share is the last one's.
    for talk in (durable, brief, busy, quiet):
        talk.handle  # noqa: B018
    for talk in (durable, quiet, brief, busy):
        talk.say()
    quiet_at = quiet.said_at
    began = bench.now_s()
    for _ in range(3):
        bench.move_to(began + TTL_S / 2)
        busy.say() if bench.sliding else busy.expect("read meanwhile")
        brief.reopened().read()
    bench.move_to(quiet_at[1] + TTL_S + MARGIN_S)
    quiet.expect_gone(f"{MARGIN_S:g} s after its deadline, while another session was written to")
    alive_before(bench, durable.said_at[0] + 7 * 86_400, lambda: durable.expect("a session of 7 d beside one of 300 s"))


@case(
    why="Staging and production share a server by database number: in the wrong one they share their memories.",
    fix="Connect with the whole URL (Redis.from_url), so that its database counts.",
)
def database_of_the_url(bench: Bench) -> None:
    """open() uses the database that the URL names: nothing is written to another, nothing is read from one."""
    other = bench.url.removesuffix("/0") + f"/{OTHER_DATABASE}"
    before = Talk(bench)
    before.say("in database 0")
    keys = bench.keys()
    try:
        handle = bench.open(before.id, url=other)
        handle.read()
    except Exception as error:  # noqa: BLE001  # search indexes exist in database 0 only
        raise NotAsked(f"the store refuses database {OTHER_DATABASE}: {one_line(error)}") from None
    before.expect_gone(f"the same id in database {OTHER_DATABASE}", by=handle)
    handle.append("user", "in another database")
    stray = sorted(key for key in bench.keys() - keys if key[0] != OTHER_DATABASE)
    if stray or bench.keys() == keys:
        where = shown(stray[0]) if stray else "no new key"
        raise Forgot(f"the URL names database {OTHER_DATABASE}, but the message went to {where} in database 0")
    before.expect("in database 0")
    _append_after_a_break(bench, handle)
    before.expect("in database 0")


def _append_after_a_break(bench: Bench, handle: Handle) -> None:
    """The database has to be the URL's after a reconnect, too; a store may also raise."""
    before = bench.keys()
    bench.control.execute_command("CLIENT", "KILL", "USER", "default")
    with contextlib.suppress(Exception):
        handle.append("user", "in another database, after a break")
    stray = sorted(key for key in bench.keys() - before if key[0] != OTHER_DATABASE)
    if stray:
        raise Forgot(f"after a lost connection, a message for database {OTHER_DATABASE} went to {shown(stray[0])}")


CASES: tuple[Case, ...] = (
    ids_apart,
    ids_are_no_patterns,
    clear_all_of_it,
    clear_nobody_else,
    second_client,
    no_private_copy,
    lifetimes_apart,
    database_of_the_url,
)

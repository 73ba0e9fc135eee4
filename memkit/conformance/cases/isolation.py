"""Cases of isolation: a session is separate from all others, and the same for every client."""

import os
import time
from collections.abc import Iterable
from functools import partial

from memkit.conformance.adapter import error_line
from memkit.conformance.case import case
from memkit.conformance.environment import MARGIN_S, TTL_S, TestEnvironment, attempt
from memkit.conformance.keyspace import SessionKeys, holds, key_text
from memkit.conformance.outcomes import CaseFailed, CaseSkipped
from memkit.conformance.processes import ForkedProcess, Interpreter, in_a_fresh_process, works_when_forked
from memkit.conformance.trial import TrialSession, check_before, long_text, quoted
from memkit.render import counted

LONG_ID = "tenant-" + "0123456789" * 250
"""Longer than the usual limits of 255, 512, 1,024 and 2,048 characters."""
IDS = (
    *("user", "User", "USER", "user1", "user10", "user11", "1user", "use", "suser"),
    *("user:1", "user_1", "user-1", "user.1", "user/1", "user|1", "user#1", "user@1", "user=1", "user;1"),
    *("user:", ":user", "user::1", "user:1:", "user:1:2", "user 1", "user  1", "user+1", "user%201"),
    *("user,1", "user,2", "1,user", "user ", " user", "user\t", "user\n", "user\x00"),
    *("user*", "user?", "use[r]", "us?r", "[a-z]*", "*", "?", "user\\*", "user^", "user$", "[^a]", "{user}", "{user}1"),
    *("us{er}", "{}user", "}{user", "{user", "'user'", '"user"', "../user", "user/..", "~user", "<user>", "(user)"),
    *("1", "01", "1.0", "-1", "0", "None", "null", "true", "[]", "", "default"),
    *("plumless", "buckeroo", "Aa", "BB"),  # the same CRC-32; the same hashCode of Java
    *("caf\u00e9", "cafe\u0301", "cafe", "\ufb01", "fi", "stra\u00dfe", "strasse", "\uff21", "A", "a", "\u0130", "i"),
    *("👋", "👋🏽", "user\u200b", "Привет", "привет", LONG_ID + "1", LONG_ID + "2", "1" + LONG_ID, "2" + LONG_ID),
)
UNWRITTEN = ("us", "us*", "u*r", "user[0-9]", "??er", "user1?", "use*", "User1", "user:2", "{user}2", "a*", "nobody")
CLEARED = (
    *("user", "user1", "user*", "us?r", "use[r]", "*", "[a-z]*", "user,1", "User", "{user}", "user:1", "cafe\u0301"),
    "user ",
)
MORE_SESSIONS = 200
"""With those of IDS more than the 100, 128 or 256 sessions that caches of sessions keep (0.3 s, measured)."""
FOREIGN = "memkit-foreign"
OTHER_DATABASE = 3
APPENDS_FOR = 0.2
"""The part of a case's time limit in which more sessions are written; a slow store gets fewer."""


def _write_all(env: TestEnvironment, ids: Iterable[str]) -> tuple[list[TrialSession], dict[str, str]]:
    """Append three messages to each id; return the sessions, and the errors of the ids that the store refuses.

    The second and third message are the same in every session: a store must not share or delete texts by content.
    """
    sessions, refused = [], {}
    for session_id in ids:
        session = TrialSession(env, session_id=session_id)
        error = session.try_append(f"only for {session_id!r}")
        if error is None:
            sessions.append(session)
        else:  # a refusal, which mixes nothing up
            refused[session_id] = error_line(error)
    if len(sessions) < len(refused):
        example = next(iter(refused.items()))
        raise CaseFailed(f"{len(refused)} of {len(refused) + len(sessions)} ids are refused, such as {example}")
    for role, text in (("assistant", "the same in every session"), ("user", "and the same once more")):
        for session in sessions:
            error = attempt(partial(session.append_fast, text, role))
            if error:  # an id is refused at its first message, or not
                raise CaseFailed(f"the session {quoted(session.id)} among others: append() raises {error_line(error)}")
    return sessions, refused


def _accepts(env: TestEnvironment, session_id: str) -> bool:
    return not isinstance(attempt(partial(env.open, session_id)), Exception)


def _refusals(env: TestEnvironment, refused: dict[str, str]) -> str:
    """Return a remark on the refused ids, at the end: a refused id is refused on an empty server too."""
    env.delete_all_keys()
    for session_id, error in refused.items():
        alone = TrialSession(env, session_id=session_id)
        if alone.try_append("alone") is None:
            among = f"the session {quoted(session_id)} among others"
            raise CaseFailed(f"{among}: append() raises {error}; alone it does not")
        stored = attempt(partial(env.read, session_id))
        if stored and not isinstance(stored, Exception):
            raise CaseFailed(f"the session {quoted(session_id)} is refused ({error}), and its message is stored")
    ids = ", ".join(map(repr, refused))[:200]
    return f"refuses {counted(len(refused), 'id')} with an error: {ids}" if refused else ""


@case(
    why="Two ids that share a memory show one person the other's dialogue.",
    fix="Use the id unchanged in the key: no case folding, stripping, normalising, slug, truncation, and no tag or "
    "pattern query in which *, ?, [, {, or a comma have a meaning.",
)
def ids_apart(env: TestEnvironment) -> str:
    """Ids that differ only in case, suffix, separator, white space, accent or late character are separate sessions."""
    sessions, refused = _write_all(env, IDS)
    until = time.monotonic() + env.limit_s * APPENDS_FOR
    for _ in range(MORE_SESSIONS):
        if time.monotonic() < until:
            more = TrialSession(env, "more")
            more.append_fast()
            env.close(more.handle)
    for session in sessions:
        session.expect(f"the session {quoted(session.id)} among {len(sessions) - 1} others")
    return _refusals(env, refused)


@case(
    why="An id that is used as a pattern shows one person's data to another.",
    fix="Read by the exact key, never by KEYS, SCAN MATCH or a query that contains the id.",
)
def ids_are_no_patterns(env: TestEnvironment) -> None:
    """An id that was never written reads as empty, also if it would match others as a pattern or prefix."""
    _write_all(env, IDS[:36])
    for session_id in UNWRITTEN:
        if _accepts(env, session_id):
            TrialSession(env, session_id=session_id).expect_empty(f"the unwritten session {session_id!r}")


@case(
    why="What clear() leaves is private data that its owner believes deleted, and that comes back later.",
    fix="Delete every key of the session (and its entry in any index) in one MULTI or script.",
)
def clear_all_of_it(env: TestEnvironment) -> None:
    """clear() removes everything of the session, for every client, and the session can begin again."""
    long_text(env)  # which may write a session, before the keys are counted
    keys = SessionKeys(env)
    session = TrialSession(env)
    early = session.open_again()
    session.append_every_kind()
    session.append(f"a secret for {session.id}")
    session.expect("before clear()", by=early)
    session.handle.clear()
    session.expect_empty("after clear(), read by the same handle", by=session.handle)
    session.expect_empty("after clear(), read by a handle opened before", by=early)
    session.expect_empty("after clear(), read by another client")
    keys.expect_none("after clear()")
    for what, needle in (("the text of a message", f"a secret for {session.id}"), ("the session's id", session.id)):
        if holds(env.control, needle.encode()):
            raise CaseFailed(f"after clear(), {what} is still stored in a key that sessions share")
    session.messages.clear()
    session.append("a new beginning", by=early)
    session.expect("appended after clear()")
    session.expect("appended after clear(), read by the handle that cleared", by=session.handle)
    keys.expect_ttl_on_every_key("a session written again after clear()")


@case(
    why="Clearing user 1 clears users 10 to 19 too: memory is lost that was not to be deleted.",
    fix="Delete the session's own keys by name; no KEYS or SCAN MATCH with the id in the pattern, no FLUSHDB.",
)
def clear_no_other_session(env: TestEnvironment) -> str:
    """clear() changes no other session, also if its id begins alike or matches as a pattern, and no foreign keys."""
    sessions, refused = _write_all(env, IDS)
    for number in (0, OTHER_DATABASE):
        with env.database(number) as client:
            client.set(FOREIGN, "not the store's")
    deadlines = {key: env.deadline_ms(key) for key in sorted(env.keys())}
    cleared = {session.id for session in sessions if session.id in CLEARED}
    for session_id in (*UNWRITTEN, *sorted(cleared)):
        if _accepts(env, session_id):
            env.open(session_id).clear()
        for number in (0, OTHER_DATABASE):
            with env.database(number) as client:
                if not client.exists(FOREIGN):
                    which = f"another program's key in database {number}"
                    raise CaseFailed(f"clear() of the session {session_id!r} deleted {which}")
    for session in sessions:
        if session.id in cleared:
            session.expect_empty(f"after clear(), the session {session.id!r}")
        else:
            session.expect(f"the session {quoted(session.id)} after clear() of {len(cleared)} others")
    for key in sorted(env.keys() & deadlines.keys()):
        before, now = deadlines[key], env.deadline_ms(key)
        if before is not None and (now is None or now < before - MARGIN_S * 1000):
            raise CaseFailed(f"clear() of other sessions changed the deadline of the key {key_text(key)}")
    return _refusals(env, refused)


@case(
    why="A worker that answers from its own copy does not know what another worker stored a second ago.",
    fix="Read from Redis at every read(), write to it before append() returns; if you cache, check a version in Redis.",
)
def second_client(env: TestEnvironment) -> str:
    """Other clients read at once what one stored: in this process, in a fork, and in a new process."""
    # Hashes of text differ between processes in production, too; a fixed seed would hide that.
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    # Started first: Python and the adapter's imports take their time.
    fresh = Interpreter(env.spec, PYTHONHASHSEED=seed) if env.spec else None
    try:
        session, remark = _in_this_process_and_a_fork(env)
        return "; ".join(filter(None, (remark, in_a_fresh_process(session, fresh))))
    finally:
        if fresh:
            fresh.stop()


def _in_this_process_and_a_fork(env: TestEnvironment) -> tuple[TrialSession, str]:
    session = TrialSession(env)
    early = session.open_again()
    session.expect_empty("before the first message", by=early)
    session.append()
    for count in ("first", "second"):
        session.expect(f"read for the {count} time by the handle that wrote", by=session.handle)
        session.expect(f"read for the {count} time by a handle opened before", by=early)
    other = session.open_again()
    session.expect("read by another handle", by=other)
    env.close(other)
    session.expect("after another handle was closed")
    session.append(role="assistant", by=early)
    session.expect("read by the first handle", by=session.handle)
    session.append(by=session.open_again())
    session.expect("read by the first handle", by=session.handle)
    if not works_when_forked(env):
        return session, "not tested from a forked process: the store does not answer in one"
    message = ("user", f"from another process to {session.id}")

    def append() -> None:
        handle = session.open_again()
        handle.append(*message)
        handle.close()

    ForkedProcess(append).result()
    session.messages.append(message)
    for name, handle in (("the first", session.handle), ("an early", early), ("a new", None)):
        session.expect(f"appended by another process, read by {name} handle", by=handle)
    return session, ""


@case(
    why="A copy outlasts its original: the bot remembers what was deleted, expired or evicted, until it restarts.",
    fix="Keep no messages in the process; or check on every read that the session in Redis is still the copied one.",
)
def no_private_copy(env: TestEnvironment) -> None:
    """When the session no longer exists in Redis, no handle still returns it, and none brings it back."""
    session = TrialSession(env)
    for _ in range(3):
        session.append()
    session.expect("an ordinary session", by=session.handle)
    env.delete_all_keys()
    session.expect_empty("deleted from Redis, read by the open handle", by=session.handle)
    session.expect_empty("deleted from Redis, read by a new handle")
    session.messages.clear()
    session.append("a new beginning")
    session.expect("appended after the deletion")
    session.expect("appended after the deletion, read by the open handle", by=session.handle)
    for _ in range(2):  # then as many as before
        session.append_by_new_client()
    session.expect("as many as before the deletion, appended by others, read by the open handle", by=session.handle)


@case(
    why="A TTL that sessions share expires a quiet user's session because of a busy one, or keeps all of them.",
    fix="Give each session keys (or hash fields) with a TTL of their own.",
    needs_ttl=True,
)
def lifetimes_apart(env: TestEnvironment) -> None:
    """Each session has its own TTL, whatever is appended to the others meanwhile."""
    busy = TrialSession(env, "user10")
    # A pattern or a prefix made from the busy session's id matches some of the quiet ones.
    quiet = [TrialSession(env, session_id=name) for name in (env.new_id("user1"), f"{busy.id}1", f"1{busy.id}")]
    durable, brief = TrialSession(env, "durable", 7 * 86_400.0), TrialSession(env, "brief", 300.0)
    # All are opened before any is written to: what handles share is the last one's.
    for session in (durable, brief, busy, *quiet):
        session.handle  # noqa: B018
    for session in (durable, *quiet, brief, busy):
        session.append()
    began_s = env.now_s()
    for _ in range(3):
        env.move_to(began_s + TTL_S / 2)
        busy.append() if env.sliding else busy.expect("read meanwhile")
        brief.open_again().read()
    for session in quiet:
        session.expect_empty_after(TTL_S, f"{MARGIN_S:g} s after its deadline, while another session was appended to")
    deadline_s = durable.appended_at[0] + 7 * 86_400
    check_before(env, deadline_s, lambda: durable.expect("a session of 7d next to one of 300 s"))


@case(
    why="Staging and production share a server by database number: in the wrong one they share their memories.",
    fix="Connect with the whole URL (Redis.from_url), so that its database counts.",
)
def database_of_the_url(env: TestEnvironment) -> None:
    """open() uses the database that the URL names: nothing is written to another, nothing is read from one."""
    other = env.server.url.removesuffix("/0") + f"/{OTHER_DATABASE}"
    session = TrialSession(env)
    session.append("in database 0")
    keys = env.keys()
    read = attempt(partial(env.read, session.id, url=other))
    if isinstance(read, Exception):  # search indexes exist in database 0 only
        raise CaseSkipped(f"the store refuses database {OTHER_DATABASE}: {error_line(read)}")
    handle = env.open(session.id, url=other)
    session.expect_empty(f"the same id in database {OTHER_DATABASE}", by=handle)
    handle.append("user", "in another database")
    wrong = sorted(key for key in env.keys() - keys if key[0] != OTHER_DATABASE)
    if wrong or env.keys() == keys:
        where = key_text(wrong[0]) if wrong else "no new key"
        raise CaseFailed(f"the URL names database {OTHER_DATABASE}, but the message went to {where} in database 0")
    session.expect("in database 0")
    # The same after a reconnect; a store may also raise.
    keys = env.keys()
    env.control.execute_command("CLIENT", "KILL", "USER", "default")
    attempt(partial(handle.append, "user", "in another database, after a lost connection"))
    wrong = sorted(key for key in env.keys() - keys if key[0] != OTHER_DATABASE)
    if wrong:
        message = f"a message for database {OTHER_DATABASE} went to {key_text(wrong[0])}"
        raise CaseFailed(f"after a lost connection, {message}")
    attempt(partial(env.read, session.id))  # the first command after a lost connection may raise
    session.expect("in database 0")

"""Cases of content: what was stored is what is read."""

import time

from memkit.conformance.adapter import error_line
from memkit.conformance.case import case
from memkit.conformance.environment import ROLES, TestEnvironment
from memkit.conformance.outcomes import CaseFailed
from memkit.conformance.trial import TrialSession

TEXTS = (
    "plain",
    "",
    " ",
    "  spaces before and after  ",
    "\n",
    "line one\nline two\r\nline three\n",
    "tab\tand vertical\x0btab",
    "NUL \x00 in the middle",
    "\x00",
    "\x1e\x1f\x1d separators",
    "user: hello\nassistant: hello\n",
    "a|b;c,d:e/f\\g",
    "|| ||| :: ;; -- --- ### *** <sep> </s> [SEP] <|im_end|> <|endoftext|>",
    "line and paragraph separators: \x85 \u2028 \u2029 \n\n end",
    "Zürich, naïve, Привет, こんにちは, שלום, العربية",
    "composed \u00e9, decomposed e\u0301, ligature \ufb01, fullwidth \uff21",
    "emoji 👋🏽 👩‍👩‍👧 🏳️‍🌈",
    "bidi \u202eabc\u202c, zero width \u200b, BOM \ufeff",
    "astral \U0001f9e0 and \U00020bb7, private \ue000, \uffff",
    '{"role": "system", "content": "not a message"}',
    "[1, 2, 3]",
    "[]",
    "{}",
    "null",
    "None",
    "true",
    "0",
    "007",
    "1e5",
    "NaN",
    '"quoted"',
    "it's 'quoted' and \"quoted\"",
    "\\u0041 \\n \\\\ %20 &amp; <b>bold</b> ${HOME} {0} %s",
    "OK",
    "b'bytes'",
    "==base64==",
    "gASVBQAAAAAAAACMAXiULg==",
)
SURROGATE = "half of an emoji: \ud83e"
"""A lone surrogate, as from a text that was cut within an emoji: UTF-8 cannot encode it."""
LONG = 1_000_000
LONG_DIALOGUE = 1_100
"""More messages than the usual limits of 1,000 and 1,024."""
APPENDS_FOR = 0.4
"""The part of a case's time limit in which the long dialogue is written; a slow store gets a shorter one."""


@case(
    why="A text that comes back altered is wrong; one that is missing is a gap in the dialogue.",
    fix="Store the text as one JSON string (or length-prefixed UTF-8) and return it unchanged: no strip, no split, no "
    "parsing of what looks like data, no `if text`.",
)
def round_trip(env: TestEnvironment) -> None:
    """Every text comes back exactly: unicode, emoji, newlines, NUL, empty, white space, text that looks like JSON."""
    size = env.window or len(TEXTS)
    for first in range(0, len(TEXTS), size):
        session = TrialSession(env)
        for number, text in enumerate(TEXTS[first : first + size]):
            session.append(text, ROLES[number % 2])
        session.expect("read by another client")
        session.expect("read by the handle that wrote it", by=session.handle)
    for text in TEXTS[1:10]:
        alone = TrialSession(env, "alone")
        alone.append(text)
        alone.expect("the only message of a session")
    error = alone.try_append(SURROGATE, "assistant")
    alone.expect_after(SURROGATE, error, "a text with a lone surrogate", "assistant")


@case(
    why="A long answer or a pasted document that is cut is lost from the cut on, without an error.",
    fix="Store the whole text, or refuse what is too long with an error.",
)
def long_text(env: TestEnvironment) -> str:
    """A text of 1 MB comes back whole, in ASCII and in other scripts, or is refused."""
    session, refusals = TrialSession(env), []
    for text in ("0123456789" * (LONG // 10), "ж🧠é" * (LONG // 8)):
        error = session.try_append(text)
        refusals += [f"a text of {len(text):,} characters is refused ({error_line(error)})"] if error else []
        read = env.read(session.id)
        if not error and len(read) == len(session.expected) and read[-1][1] != text:
            raise CaseFailed(f"a text of {len(text):,} characters came back with {len(read[-1][1]):,}, or altered")
        session.expect("long texts")
    return "; ".join(refusals)


@case(
    why="People repeat themselves. A store that drops the second 'yes' as a duplicate has lost an answer.",
    fix="Detect a retried message by an id that the client makes once a call, never by its content.",
)
def identical_messages(env: TestEnvironment) -> None:
    """The same message several times in a row, also by another client, is kept as often as it was appended."""
    session = TrialSession(env)
    for _ in range(3):
        session.append("yes")
    session.append("yes", "assistant")
    session.append("yes")
    session.append("yes", by=session.open_again())
    for text in ("yes", "yes", "yes, that one", "yes, that one and the other"):
        session.append(text, "assistant")  # an answer is no later state of the one before it
    session.expect("the same text several times")


@case(
    why="A tool's result that comes back as the user's words, or not at all, gives the model a false dialogue.",
    fix="Store the role as it was given, and return every role.",
)
def roles(env: TestEnvironment) -> str:
    """Messages of every role (user, assistant, system, tool) come back with that role, whichever comes first."""
    session = TrialSession(env)
    for role in (*env.roles, *reversed(env.roles)):
        session.append(role=role)
    session.expect("every role")
    for first in env.roles:
        session = TrialSession(env, f"begun-by-{first}")
        for role in (first, first, *env.roles):
            session.append(role=role)
            session.expect(f"a session that begins with a message of the role {first}")
    return "" if set(env.roles) == set(ROLES) else f"the store declares that its roles are {', '.join(env.roles)}"


@case(
    why="An answer before its question is not the dialogue that took place.",
    fix="Let the server keep the order (RPUSH, XADD, a counter), not a clock, and not the members' spelling.",
)
def order(env: TestEnvironment) -> None:
    """Messages written quickly, by clients that take turns, come back in the order in which they were written."""
    session = TrialSession(env)
    handles = [session.handle, session.open_again(), session.open_again()]
    for number in range(60):
        # Not in alphabetical order, in which a sorted set would keep them.
        session.append(f"{(60 - number) * 7 % 61} of the order", ROLES[number % 3], by=handles[number // 2 % 3])
    session.expect(f"{len(session.messages)} messages, written by three clients in turn")
    for number in range(3):
        session.append(f"{number} by a client of its own", by=session.open_again())
    session.expect(f"{len(session.messages)} messages, the last three each by a new client")
    # As fast as possible: several in a millisecond.
    for number in range(100):
        session.append_fast(f"{(100 - number) * 7 % 101} in quick succession")
    session.expect(f"{len(session.messages)} messages, written one after the other")


@case(
    why="The beginning of a dialogue holds who the user is and what was agreed; if it is trimmed, it is lost.",
    fix="Read the whole list (LRANGE 0 -1, every page of a scan); a store that keeps the last N on purpose declares "
    "window = N.",
)
def long_dialogue(env: TestEnvironment) -> None:
    """A dialogue of 1,100 messages comes back whole (the last N of it with window = N), and clear() removes it all."""
    session, until = TrialSession(env), time.monotonic() + env.limit_s * APPENDS_FOR
    while len(session.messages) < LONG_DIALOGUE and time.monotonic() < until:
        session.append_fast()
    session.expect(f"a dialogue of {len(session.messages):,} messages")
    session.handle.clear()
    session.expect_empty(f"after clear() of {len(session.messages):,} messages")

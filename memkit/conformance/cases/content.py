# the docstring of a case is its meaning: a sentence about the store
"""Cases: what was stored is what is read."""

from __future__ import annotations

from memkit.conformance.case import Case, case
from memkit.conformance.environment import ROLES, Bench
from memkit.conformance.outcomes import Forgot
from memkit.conformance.trial import Talk, difference

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
LONG = 1_000_000


@case(
    why="A text that comes back altered is a memory of something nobody said; one that vanishes is a gap in the talk.",
    fix="Store the text as one JSON string (or length-prefixed UTF-8) and give it back as it is: no strip, no split, "
    "no parsing of what looks like data, no `if text`.",
)
def round_trip(bench: Bench) -> None:
    """Every text comes back exactly: unicode, emoji, newlines, NUL, empty, white space, text that looks like JSON."""
    talk = Talk(bench)
    for number, text in enumerate(TEXTS):
        talk.say_exactly(text, ROLES[number % 2])
    talk.expect("read by another client")
    talk.expect("read by the handle that wrote it", by=talk.handle)
    for text in TEXTS[1:10]:
        alone = Talk(bench, "alone")
        alone.say_exactly(text)
        alone.expect("the only message of a session")


@case(
    why="A long answer or a pasted document that is cut is forgotten from the cut on, and nobody is told.",
    fix="Store the whole text, or refuse what is too long with an error.",
)
def long_text(bench: Bench) -> None:
    """A text of 1 MB comes back whole, in ASCII and in other scripts."""
    talk = Talk(bench)
    for text in ("0123456789" * (LONG // 10), "ж🧠é" * (LONG // 8)):
        talk.say(text)
        read = bench.read(talk.id)
        if len(read) == len(talk.said) and read[-1][1] != text:
            raise Forgot(f"a text of {len(text):,} characters came back with {len(read[-1][1]):,}, or altered")
        talk.expect("long texts")


@case(
    why="People repeat themselves. A store that takes the second 'yes' for a duplicate has lost an answer.",
    fix="Tell a repeated message from a retried one by an id that the client makes once a call, never by its content.",
)
def identical_messages(bench: Bench) -> None:
    """The same message several times in a row, also by another client, is kept as often as it was said."""
    talk = Talk(bench)
    for _ in range(3):
        talk.say("yes")
    talk.say("yes", "assistant")
    talk.say("yes")
    talk.say("yes", by=talk.reopened())
    talk.expect("the same text several times")


@case(
    why="A tool's result that comes back as the user's words, or not at all, makes the model remember another talk.",
    fix="Store the role as it was given, and give back every role.",
)
def roles(bench: Bench) -> str:
    """Messages of every role (user, assistant, system, tool) come back with that role, whichever begins the talk."""
    talk = Talk(bench)
    for role in (*bench.roles, *reversed(bench.roles)):
        talk.say(role=role)
    talk.expect("every role")
    for first in bench.roles:
        talk = Talk(bench, f"begun-by-{first}")
        for role in (first, first, *bench.roles):
            talk.say(role=role)
            talk.expect(f"a session that begins with a message of the role {first}")
    return "" if set(bench.roles) == set(ROLES) else f"the store declares that its roles are {', '.join(bench.roles)}"


@case(
    why="An answer before its question is not the talk that took place.",
    fix="Let the server keep the order (RPUSH, XADD, a counter), not a clock, and not the members' spelling.",
)
def order(bench: Bench) -> None:
    """Messages written quickly, by clients that take turns, come back in the order in which they were written."""
    talk = Talk(bench)
    handles = [talk.handle, talk.reopened(), talk.reopened()]
    for number in range(60):
        # Counting about: no order of the texts themselves is the right one.
        talk.say(f"{(60 - number) * 7 % 61} of the order", ROLES[number % 3], by=handles[number // 2 % 3])
    for number in range(3):
        talk.say(f"{number} by a client of its own", by=talk.reopened())
    # As fast as it goes: several in a millisecond.
    for number in range(100):
        text = f"{(100 - number) * 7 % 101} in quick succession"
        talk.handle.append("user", text)
        talk.said.append(("user", text))
    talk.expect(f"{len(talk.said)} messages, written one after the other")


@case(
    why="The beginning of a talk holds who the user is and what was agreed; trimmed or left off a page, it is lost.",
    fix="Read the whole list (LRANGE 0 -1, every page of a scan), and trim only where the application asked for it.",
)
def long_dialogue(bench: Bench) -> None:
    """A dialogue of 500 messages comes back whole, nothing trimmed, no page left off, and clear() removes it all."""
    talk = Talk(bench)
    for _ in range(500):
        talk.say()
    read = bench.read(talk.id)
    if read != talk.said:
        raise Forgot(difference(talk.said, read))
    talk.handle.clear()
    talk.expect_gone(f"after clear() of {len(talk.said)} messages")


CASES: tuple[Case, ...] = (round_trip, long_text, identical_messages, roles, order, long_dialogue)

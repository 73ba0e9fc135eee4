"""One key that takes the writes of many users: no session id reaches the store. Pure, by names, sizes and times."""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from memkit.audit.checks.payload_times import written_ms
from memkit.audit.finding import Finding, Since
from memkit.audit.key_shapes import Group
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.readonly.values import to_name
from memkit.render import counted, duration

NO_VALUES = frozenset(("", "none", "null", "undefined", "nan", "nil", "<nil>", "%!s(<nil>)"))
"""What programming languages write for a missing value: such a session id proves that none reached the store."""
_ID = rb"(?:\w+_id|[a-z]+I[dD]|id)"
NO_ID = re.compile(
    rb"(?:^|[:/|#])(?:\[object \w+\]|\$\{[\w.]+\}|\{\{[^{}]+\}\}|%%s|\{%b\}|<%b>|:%b|0{8}(?:-0{4}){3}-0{12})"
    rb"(?=$|[:/|#])" % (_ID, _ID, _ID)
)
"""The text of an object, a template that was not filled in, or a UUID of zeros; ``{alice}`` is a hash tag."""
LARGER = 10
"""The shared key is this many times larger than the largest other session; 1,800 messages against 6 in one report."""
FEWEST_OTHER_SESSIONS = 10
LONGER, WEEKEND_MS = 2, 72 * 3_600_000
"""The other sessions are no longer written if nothing was written to them for longer than a weekend, and for twice the
longest time before. In a night or a weekend, one large session that is always in use may be the only one written.
"""


def shared_key(expected: Expectation, groups: Sequence[Group]) -> Finding | None:
    """Return the finding of a key that many users share.

    Args:
        expected: The expectation that the keys match.
        groups: Its sessions' keys; only ``--full`` asks for their sizes.

    Returns:
        The finding if a session's id is the text of no id, or if one session, by far the largest, is the
        only one still written to; else None.
    """
    sessions: defaultdict[str, list[KeyFacts]] = defaultdict(list)
    for group in groups:
        for member in group.members:
            sessions[member.session].append(member.facts)
    sizes = {session: sum(one.size_bytes or 0 for one in own) for session, own in sessions.items()}
    # The last part of an id may stand behind a tenant's. An id is missing only behind a separator.
    empty = expected.prefix.endswith((":", "/", "|", "#"))
    words = {one: one.rpartition(":")[2].lower() for one in sizes if (not one.endswith(":") if one else empty)}
    none = (one for one in words if words[one] in NO_VALUES or any(NO_ID.search(each.key) for each in sessions[one]))
    nameless = list(none) if expected.prefix else []
    largest = max(nameless or sizes, key=lambda one: sizes[one])
    others = [one for session, own in sessions.items() if session != largest for one in own]
    rest = max((size for session, size in sizes.items() if session != largest), default=0)
    times = sorted(written_ms(expected, one) for one in others)
    newest = max(written_ms(expected, one) for one in sessions[largest])
    silence = newest - times[-1] if times else 0
    longest = max((after - before for before, after in pairwise(times)), default=0)
    alone = len(sizes) > FEWEST_OTHER_SESSIONS and sizes[largest] > LARGER * rest and silence > longest
    if not nameless and not alone:
        return None
    name = to_name(sessions[largest][0].key)
    facts = []
    if nameless:
        facts.append(f"the id in {name!r} is that of a missing value, an object or a template")
    if alone:
        facts.append(
            f"only {name} was written to in the last {duration(silence)}; before, the longest time without a write to "
            f"another session was {duration(longest)}"
        )
    if sizes[largest]:
        facts.append(f"it takes {sizes[largest]:,} bytes, the largest other session {rest:,}")
    likely = (nameless and sizes[largest] > LARGER * rest) or (alone and silence > max(WEEKEND_MS, LONGER * longest))
    return Finding.of(
        "shared_key",
        expected,
        keys=len(sessions[largest]),
        message=f"many users {'' if likely else 'may '}write to the one session {name}, beside "
        f"{counted(len(sizes) - 1, 'other session')}: they see each other's messages",
        confidence="likely" if likely else "possible",
        since=Since(times[-1], "lower bound") if alone else None,
        evidence=facts,
        next=f"memkit inspect URL '{name}'; make the writer refuse a missing session id",
    )

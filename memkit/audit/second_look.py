"""A second look: the new deadlines of keys that were renewed meanwhile measure the TTL that writes give. Pure."""

from collections import Counter
from collections.abc import Sequence

from memkit.audit.checks.ttl_inference import rounded
from memkit.audit.checks.ttl_peaks import FEWEST
from memkit.audit.finding import Finding
from memkit.audit.key_shapes import groups_of, narrowest_prefix
from memkit.audit.sampling import KeyFacts
from memkit.config import Expectation
from memkit.render import counted, duration


def measured_renewals(
    expected: Expectation, before: Sequence[KeyFacts], after: Sequence[KeyFacts]
) -> tuple[Finding | None, str]:
    """Return the finding of renewals that give less than the expected TTL, and a note of what was measured.

    A key with another deadline at the second look was given a TTL between ``deadline - second`` and
    ``deadline - first``. A short TTL of one shape of names that never had the expected one, beside others, may be on
    purpose, such as that of drafts.

    Args:
        expected: The expectation.
        before: Its keys at the first look.
        after: Those that still existed at the second.
    """
    first = {one.key: one for one in before}
    renewed = {
        one.key: (one.deadline_ms - one.seen_ms, one.deadline_ms - first[one.key].seen_ms)
        for one in after
        if one.deadline_ms is not None and one.deadline_ms != first[one.key].deadline_ms
    }
    bounds = list(renewed.values())
    seconds = (after[0].seen_ms - before[0].seen_ms) / 1000 if after else 0
    note = f"second look after {seconds:,.0f} s: {len(bounds):,} of {counted(len(before), 'key')} matching "
    note += f"{expected.pattern} were renewed"
    if not bounds or expected.ttl_ms is None:
        return None, note
    given = Counter(duration(rounded((low + high) / 2)) for low, high in bounds)
    note += ": " + ", ".join(f"{count:,} to about {ttl}" for ttl, count in given.most_common(3))
    spread = expected.jitter
    ttls = [(ttl * (1 - spread), ttl * (1 + spread)) for ttl in expected.ttls_ms]
    short = {
        key: one
        for key, one in renewed.items()
        if one[1] < ttls[-1][0] and not any(one[0] <= top and one[1] >= floor for floor, top in ttls)
    }
    if not short:
        return None, note
    low, high = sorted(short.values())[len(short) // 2]
    groups = groups_of(before, expected.prefix)
    own = [one for group in groups if any(one.key in short for one in group.keys) for one in group.keys]
    on_purpose = len(own) < len(before) and not any((one.ttl_at_last_access_ms or 0) >= ttls[0][0] for one in own)
    prefix = narrowest_prefix(list(short), list(first), expected.prefix)
    observed = rounded((low + high) / 2)
    finding = Finding.of(
        "ttl_too_short",
        expected,
        prefix=prefix,
        keys=len(short),
        message=f"writes to keys matching {prefix}* set a TTL of {duration(observed)} instead of "
        f"{duration(expected.ttl_ms)}, measured during the audit",
        # Of fewer, users may have ended the sessions: some applications shorten the TTL then.
        confidence="proven" if len(short) >= FEWEST and not on_purpose else "possible",
        observed_ms=observed,
        evidence=(
            f"{counted(len(short), 'key')} got a new deadline within {seconds:,.0f} s",
            *(["keys with names of this shape never had the expected TTL; other keys had it"] if on_purpose else []),
        ),
        next="on this server, CLIENT LIST shows each client's last command: look for cmd=expire, cmd=setex and cmd=set",
    )
    return finding, note

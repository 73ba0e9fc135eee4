"""What the sessions of a live server were meant to live: ``chat:*=7d,sliding,jitter=10%``, read and matched. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

from memkit.audit.sampling import KeyFacts
from memkit.errors import PolicyError
from memkit.policy import Duration, ExpiryPolicy, ttl_text

JITTER = 0.10
"""Many applications spread deadlines by up to this much, so that keys do not expire together."""
SHAPE = "expected PATTERN=TTL[,sliding|absolute][,jitter=10%], such as 'chat:*=7d'"

_ENTRY = re.compile(r"(?P<pattern>.+?)=(?P<ttl>[^=,]+)(?P<options>(?:,[^,]+)*)")
_PERCENT = re.compile(r"jitter=(\d+(?:\.\d+)?) ?%")


@dataclass(frozen=True)
class Expectation:
    """The policy that keys matching a Redis glob were meant to have; ``jitter`` is a share of the TTL, either way."""

    pattern: str
    policy: ExpiryPolicy
    jitter: float = JITTER

    @property
    def ttl_ms(self) -> int | None:
        """The expected TTL, or None for never."""
        return self.policy.ttl_ms

    @property
    def prefix(self) -> str:
        """The literal text that every matching key begins with."""
        literal = re.match(r"(?:[^*?\[\\]|\\.)*", self.pattern, re.DOTALL)
        return re.sub(r"\\(.)", r"\1", literal[0] if literal else "", flags=re.DOTALL)

    @cached_property
    def matches(self) -> re.Pattern[bytes]:
        """The pattern as a regular expression for ``fullmatch``."""
        return glob_expression(self.pattern)

    @property
    def text(self) -> str:
        """The expectation as ``parse_expectation`` reads it."""
        kind = "" if self.policy.ttl_ms is None else f",{self.policy.kind}"
        ttl = "never" if self.policy.ttl_ms is None else ttl_text(self.policy.ttl_ms)
        return f"{self.pattern}={ttl}{kind},jitter={100 * self.jitter:g}%"

    def of(self, keys: Iterable[KeyFacts]) -> list[KeyFacts]:
        """Return the keys that match."""
        if self.pattern == f"{self.prefix}*":
            begin = self.prefix.encode("utf-8", "surrogateescape")
            return [one for one in keys if one.key.startswith(begin)]
        matches = self.matches.fullmatch
        return [one for one in keys if matches(one.key)]

    def __str__(self) -> str:
        return f"{self.pattern}={self.policy}"


Expect = str | Mapping[str, Duration | ExpiryPolicy | Expectation | None] | Iterable[Expectation | str]
"""Pattern to TTL, or expectations as parse_expectation reads or returns them."""


def glob_expression(pattern: str) -> re.Pattern[bytes]:
    r"""Return a Redis glob (``*``, ``?``, ``[a-z]``, ``[^a]``, ``\x``) as a regular expression over keys' bytes."""
    parts: list[bytes] = []
    for part in re.findall(r"\\.|\[\^?(?:\\.|[^\]])*\]|.", pattern, re.DOTALL):
        if part == "*":
            parts.append(b".*")
        elif part == "?":
            parts.append(b".")
        elif part.startswith("[") and len(part) > 1:
            parts.append(part.encode())
        else:
            parts.append(re.escape(part.removeprefix("\\") if len(part) > 1 else part).encode())
    try:
        return re.compile(b"".join(parts), re.DOTALL)
    except re.error as error:
        raise PolicyError(f"{pattern!r} is not a pattern that Redis takes: {error}; {SHAPE}") from None


def parse_expectation(text: str) -> Expectation:
    """Return what one ``--expect`` says; bare means sliding, renewed by every write.

    Raises PolicyError that names the part it could not read.
    """
    entry = _ENTRY.fullmatch(text.strip())
    if not entry:
        raise PolicyError(f"{text!r} is not an expectation; {SHAPE}")
    expectation = Expectation(entry["pattern"], _policy(entry["ttl"].strip(), text))
    if expectation.pattern[-1] in ":/|#" and expectation.pattern == expectation.prefix:
        begins = expectation.pattern
        raise PolicyError(f"in {text!r}: {begins!r} names one key; for all that begin so: '{begins}*={entry['ttl']}'")
    for option in filter(None, entry["options"].split(",")):
        expectation = _with_option(expectation, option.strip(), text)
    return expectation


def _meant(meant: Duration | ExpiryPolicy | None) -> ExpiryPolicy:
    return ExpiryPolicy.never() if meant == "never" else ExpiryPolicy.of(meant)


def _policy(ttl: str, text: str) -> ExpiryPolicy:
    if ttl == "never":
        return ExpiryPolicy.never()
    try:
        return ExpiryPolicy.sliding(float(ttl) if re.fullmatch(r"[+-]?\d+(\.\d+)?", ttl) else ttl)
    except PolicyError as error:
        raise PolicyError(f"in {text!r}: {error}") from None


def _with_option(expectation: Expectation, option: str, text: str) -> Expectation:
    percent = _PERCENT.fullmatch(option)
    if percent and float(percent[1]) < 100:
        return replace(expectation, jitter=float(percent[1]) / 100)
    if option in ("sliding", "absolute"):
        kind: Literal["sliding", "absolute"] = "sliding" if option == "sliding" else "absolute"
        policy = expectation.policy
        return replace(expectation, policy=replace(policy, kind=kind) if policy.ttl_ms else policy)
    raise PolicyError(f"in {text!r}: {option!r} is not an option; {SHAPE}")


def read_expectations(path: str | Path) -> list[Expectation]:
    """Return the expectations of a file: one a line, ``#`` begins a comment.

    Raises PolicyError that names the line, and for a file that cannot be read or says nothing.
    """
    try:
        lines = Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"cannot read expectations from {path}: {error}") from None
    found = []
    for number, line in enumerate(lines, 1):
        meant = line.partition("#")[0].strip() if not line.lstrip().startswith("#") else ""
        if meant:
            try:
                found.append(parse_expectation(meant))
            except PolicyError as error:
                raise PolicyError(f"{path}, line {number}: {error}") from None
    if not found:
        raise PolicyError(f"{path} has no expectation in it; {SHAPE}")
    return found


def expectations(expect: Expect) -> list[Expectation]:
    """Return what ``audit(expect=...)`` was given as expectations, the most specific pattern first.

    Raises PolicyError for what is none, and for two of one pattern.
    """
    if isinstance(expect, Mapping):
        found = [_of_pair(pattern, meant) for pattern, meant in expect.items()]
    elif isinstance(expect, str):
        found = [parse_expectation(expect)]
    elif isinstance(expect, Iterable) and not isinstance(expect, bytes):
        found = [_of_item(one) for one in expect]
    else:
        raise PolicyError(f"{expect!r} is no expectation; expected {{pattern: TTL}}, such as {{'chat:*': '7d'}}")
    twice = [pattern for pattern, count in Counter(one.pattern for one in found).items() if count > 1]
    if twice:
        raise PolicyError(f"{twice[0]!r} is expected twice; say once what its keys were meant to live")
    return sorted(found, key=lambda one: -len(one.prefix))


def _of_pair(pattern: object, meant: Duration | ExpiryPolicy | Expectation | None) -> Expectation:
    if isinstance(meant, Expectation):
        return meant
    if not isinstance(pattern, str) or not pattern:
        raise PolicyError(f"{pattern!r} is no pattern; expected text, as in {{'chat:*': '7d'}}")
    return Expectation(pattern, _meant(meant))


def _of_item(one: object) -> Expectation:
    if isinstance(one, Expectation):
        return one
    if isinstance(one, str):
        return parse_expectation(one)
    raise PolicyError(f"{one!r} is no expectation; {SHAPE}, or {{'chat:*': '7d'}}")

"""Expected TTLs by pattern: ``chat:*=7d,sliding,jitter=10%``, from the command line, Python or a configuration file."""

import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol, Self, TypeVar, cast

from memkit.errors import PolicyError
from memkit.policy import FINEST_JITTER, JITTER, Duration, ExpiryPolicy, ttl_text

SHAPE = "expected PATTERN=TTL[|TTL][,sliding|absolute][,jitter=10%], such as 'chat:*=7d'"
CONFIG_VARIABLE = "MEMKIT_CONFIG"
SPRING_MARGIN_MS = 300_000
"""How much longer Spring Session keeps a session's hash than its ``expires`` key (RedisIndexedSessionRepository)."""

_ENTRY = re.compile(r"(?P<pattern>.+?)=(?P<ttl>[^=,]+)(?P<options>(?:,[^,]+)*)")
_PERCENT = re.compile(r"(?:jitter=)?(\d+(?:\.\d+)?) ?%")


class _HasKey(Protocol):
    @property
    def key(self) -> bytes: ...


_Keyed = TypeVar("_Keyed", bound=_HasKey)


@dataclass(frozen=True)
class Expectation:
    """The expected policy of the keys that match a Redis glob, such as ``chat:*``.

    Args:
        pattern: The glob.
        policy: The policy; of several TTLs on purpose, the one with the longest.
        jitter: How far a TTL may differ from the expected one, as a share of it, either way.
        other_ttls_ms: The shorter TTLs, in milliseconds, that are given on purpose too.
    """

    pattern: str
    policy: ExpiryPolicy
    jitter: float = JITTER
    other_ttls_ms: tuple[int, ...] = ()

    @property
    def ttl_ms(self) -> int | None:
        """The (longest) expected TTL in milliseconds; None for never."""
        return self.policy.ttl_ms

    @property
    def ttls_ms(self) -> tuple[int, ...]:
        """All expected TTLs in milliseconds, the longest last; none for never."""
        return () if self.ttl_ms is None else (*self.other_ttls_ms, self.ttl_ms)

    @property
    def tolerance(self) -> float:
        """How far a deadline may differ from the expected one, as a share of the TTL: clients compute some."""
        return max(self.jitter, FINEST_JITTER)

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
        return f"{self.pattern}={self._ttls}{kind},jitter={100 * self.jitter:g}%"

    @property
    def _ttls(self) -> str:
        return "|".join(map(ttl_text, self.ttls_ms)) or "never"

    def matching(self, keys: Iterable[_Keyed]) -> list[_Keyed]:
        """Return the keys that match."""
        if self.pattern == f"{self.prefix}*":
            begin = self.prefix.encode("utf-8", "surrogateescape")
            return [one for one in keys if one.key.startswith(begin)]
        matches = self.matches.fullmatch
        return [one for one in keys if matches(one.key)]

    def of_spring_session(self) -> Self:
        """Return the expectation with the TTLs that Spring Session's layout gives on purpose."""
        if self.ttl_ms is None:
            return self
        # A session that ended by a log-out has no interval left: its hash keeps the margin alone.
        ttls_ms = {SPRING_MARGIN_MS, self.ttl_ms - SPRING_MARGIN_MS, self.ttl_ms, self.ttl_ms + SPRING_MARGIN_MS}
        *others, longest = sorted(one for one in ttls_ms if one > 0)
        policy, jitter = replace(self.policy, ttl_ms=longest), min(self.jitter, FINEST_JITTER)
        return replace(self, policy=policy, other_ttls_ms=tuple(others), jitter=jitter)

    def __str__(self) -> str:
        kinds = f"{self.policy.kind} {self._ttls}" if self.other_ttls_ms else str(self.policy)
        return f"{self.pattern}={kinds}"


Expect = str | Mapping[str, Duration | ExpiryPolicy | Expectation | None] | Iterable[Expectation | str]
"""Pattern to TTL, or expectations as ``parse_expectation`` reads or returns them."""


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


def parse_expectation(text: object) -> Expectation:
    """Return the expectation that one ``--expect`` states; without an option it is sliding, renewed by every write.

    Raises:
        PolicyError: Names the part that could not be read.
    """
    entry = _ENTRY.fullmatch(text.strip()) if isinstance(text, str) else None
    if not entry:
        raise PolicyError(f"{text!r} is not an expectation; {SHAPE}")
    pattern, ttl = entry["pattern"], entry["ttl"].strip()
    try:
        ttls = [float(one) if re.fullmatch(r"[+-]?\d+(\.\d+)?", one) else one for one in map(str.strip, ttl.split("|"))]
        expectation = _with_ttls(pattern, ttls)
        for option in filter(None, entry["options"].split(",")):
            expectation = _with_option(expectation, option.strip())
    except PolicyError as error:
        raise PolicyError(f"in {text!r}: {error}") from None
    if pattern[-1] in ":/|#" and pattern == expectation.prefix:
        raise PolicyError(f"in {text!r}: {pattern!r} matches one key only; for the prefix write '{pattern}*={ttl}'")
    return expectation


def _with_ttls(pattern: str, ttls: Sequence[Duration | ExpiryPolicy | None]) -> Expectation:
    if not ttls:
        raise PolicyError(f"there is no TTL; {SHAPE}")
    policies = [ExpiryPolicy.never() if one == "never" else ExpiryPolicy.of(one) for one in ttls]
    if len(policies) > 1 and any(one.ttl_ms is None for one in policies):
        raise PolicyError("there are both 'never' and a TTL; use a separate pattern for each")
    in_order = sorted(policies, key=lambda one: one.ttl_ms or 0)
    others = tuple(one.ttl_ms for one in in_order[:-1] if one.ttl_ms is not None)
    return Expectation(pattern, in_order[-1], other_ttls_ms=others)


def _with_option(expectation: Expectation, option: str) -> Expectation:
    percent = _PERCENT.fullmatch(option)
    if percent and float(percent[1]) < 100:
        return replace(expectation, jitter=float(percent[1]) / 100)
    if option in ("sliding", "absolute"):
        policy = expectation.policy
        kind: Literal["sliding", "absolute"] = "sliding" if option == "sliding" else "absolute"
        return replace(expectation, policy=replace(policy, kind=kind) if policy.ttl_ms else policy)
    raise PolicyError(f"{option!r} is not an option; {SHAPE}")


def expectations(expect: Expect) -> list[Expectation]:
    """Return what ``audit(expect=...)`` was given as expectations, the most specific pattern first.

    Raises:
        PolicyError: It is none of the forms of Expect, or there are two expectations of one pattern.
    """
    if isinstance(expect, Mapping):
        found = [_of_pair(pattern, ttl) for pattern, ttl in expect.items()]
    elif isinstance(expect, str):
        found = [parse_expectation(expect)]
    elif isinstance(expect, Iterable) and not isinstance(expect, bytes):
        found = [one if isinstance(one, Expectation) else parse_expectation(one) for one in expect]
    else:
        raise PolicyError(f"{expect!r} is not an expectation; expected {{pattern: TTL}}, such as {{'chat:*': '7d'}}")
    twice = [pattern for pattern, count in Counter(one.pattern for one in found).items() if count > 1]
    if twice:
        raise PolicyError(f"{twice[0]!r} is given twice; if both TTLs are intended, write '{twice[0]}=1d|30d'")
    return sorted(found, key=lambda one: (-len(one.prefix), -len(one.pattern.replace("*", ""))))


def _of_pair(pattern: object, ttl: object) -> Expectation:
    """Return the expectation of a mapping's item, as Python or TOML writes it."""
    if isinstance(ttl, Expectation):
        return ttl
    if not isinstance(pattern, str) or not pattern:
        raise PolicyError(f"{pattern!r} is not a pattern; expected text, as in {{'chat:*': '7d'}}")
    table = ttl if isinstance(ttl, Mapping) else {"ttl": ttl}
    try:
        if "ttl" not in table or not set(table) <= {"ttl", "kind", "jitter"}:
            raise PolicyError(f"expected {{ttl = '7d', kind = 'sliding', jitter = '10%'}}, got {ttl!r}")
        ttls = table["ttl"]
        if isinstance(ttls, str):
            ttls = [one.strip() for one in ttls.split("|")]
        expectation = _with_ttls(pattern, ttls if isinstance(ttls, list) else [cast(Duration, ttls)])
        for option in (name for name in ("kind", "jitter") if name in table):
            expectation = _with_option(expectation, str(table[option]))
    except PolicyError as error:
        raise PolicyError(f"{pattern!r}: {error}") from None
    return expectation


def configured_expectations(directory: Path | None = None) -> list[Expectation]:
    """Return the expectations of the configuration file; none if there is no such file.

    The file that ``MEMKIT_CONFIG`` names, or the nearest ``memkit.toml`` (table ``[expect]``) or ``pyproject.toml``
    (table ``[tool.memkit.expect]``) in this or a parent folder.

    Raises:
        PolicyError: Names the file, and the pattern or the line that could not be read.
    """
    named = os.environ.get(CONFIG_VARIABLE)
    if named:
        return _read_toml(Path(named)) or []
    start = (directory or Path.cwd()).absolute()
    for folder in (start, *start.parents):
        for name in ("memkit.toml", "pyproject.toml"):
            if (folder / name).is_file() and (found := _read_toml(folder / name)) is not None:
                return found
    return []


def expected(expect: Expect) -> list[Expectation]:
    """Return the expectations that were given, such as a command's; without any, those of the configuration file."""
    return expectations(expect) or configured_expectations()


def _read_toml(path: Path) -> list[Expectation] | None:
    """Return a file's expectations; None if it is a pyproject.toml without a table for memkit."""
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PolicyError(f"cannot read the configuration {path}: {error}") from None
    settings: object = document
    of_a_project = path.name == "pyproject.toml" or "tool" in document
    if of_a_project:
        tool = document.get("tool")
        settings = tool.get("memkit") if isinstance(tool, dict) else None
        if settings is None:
            return None
    table = settings.get("expect", {}) if isinstance(settings, dict) else settings
    unknown = sorted(set(settings) - {"expect"}) if isinstance(settings, dict) else []
    try:
        if unknown or not isinstance(table, Mapping):
            name = "[tool.memkit.expect]" if of_a_project else "[expect]"
            raise PolicyError(f"expected the table {name} alone; got {unknown[0] if unknown else table!r}")
        return expectations(table)
    except PolicyError as error:
        raise PolicyError(f"{path}: {error}") from None

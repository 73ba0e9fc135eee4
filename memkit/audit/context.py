"""What all checks of one audit share: the keys, the server's facts, and ways to look up more keys."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from memkit.audit.checks.ttl_inference import ServerHistory
from memkit.audit.finding import Since
from memkit.audit.sampling import KeyFacts
from memkit.audit.server_info import ServerFacts
from memkit.render import ago, utc_text, utc_time


@dataclass(frozen=True, slots=True)
class AuditContext:
    """What all checks of one audit share.

    Args:
        keys: The keys that were looked at.
        history: What the TTL checks use of the server's report.
        server: The report of the (first) server.
        siblings: Looks up keys by name that a sample has missed.
        value_bytes: Returns the bytes of values, 0 for an integer, of those keys of which the server reports the size.
        other_keys: The keys that match no expectation.
        fields_without_ttl: For hashes with field TTLs, how many of their fields have none.
        first_fields: Hashes of which a field ends before the key, with the deadline of the first such field.
    """

    keys: Sequence[KeyFacts]
    history: ServerHistory
    server: ServerFacts
    siblings: Callable[[Sequence[bytes]], Sequence[KeyFacts]]
    value_bytes: Callable[[Sequence[bytes]], Mapping[bytes, int]] = lambda _: {}
    other_keys: Sequence[KeyFacts] = ()
    fields_without_ttl: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)
    first_fields: Sequence[KeyFacts] = ()

    def when(self, at_ms: float) -> str:
        """Return a time as UTC and as how long ago: ``2026-11-22T02:17:03Z (42 min ago)``."""
        at = utc_time(at_ms)
        return f"{utc_text(at)} ({ago(at, utc_time(self.history.now_ms))})"

    def began_by(self, accessed_ms: float) -> Since:
        """Return the latest time at which a change began that a key's last access shows; idle times are seconds."""
        return Since(min(accessed_ms + 1_000, self.history.now_ms), "upper bound")

    def since_text(self, since: Since) -> str:
        """Return a change's time in words."""
        if since.bound == "until":
            return f"until {self.when(since.at_ms)}"
        if since.bound == "lower bound":
            return f"since {self.when(since.at_ms)} or soon after"
        return f"since {self.when(-(-since.at_ms // 1000) * 1000)} at the latest"

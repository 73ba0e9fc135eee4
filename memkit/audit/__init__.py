"""audit: a Redis server against the expected TTLs."""

from memkit.audit.finding import Finding
from memkit.audit.report import AuditReport
from memkit.audit.run import acl_rule, audit
from memkit.config import Expectation, parse_expectation

__all__ = ["AuditReport", "Expectation", "Finding", "acl_rule", "audit", "parse_expectation"]

"""Every case, in the order in which they are asked."""

from __future__ import annotations

from memkit.conformance import cases_content, cases_crowd, cases_expiry, cases_faults, cases_isolation
from memkit.conformance.case import Case

CASES: tuple[Case, ...] = (
    *cases_content.CASES,
    *cases_isolation.CASES,
    *cases_expiry.CASES,
    *cases_faults.CASES,
    *cases_crowd.CASES,
)

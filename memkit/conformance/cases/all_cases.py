"""Every case, in the order in which they run."""

from __future__ import annotations

from memkit.conformance.case import Case
from memkit.conformance.cases import concurrency, content, expiry, faults, isolation

CASES: tuple[Case, ...] = (
    *content.CASES,
    *isolation.CASES,
    *expiry.CASES,
    *faults.CASES,
    *concurrency.CASES,
)

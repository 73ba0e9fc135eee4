"""Every case, in the order in which they run: that of the modules, and in each that of the file."""

from memkit.conformance.case import Case
from memkit.conformance.cases import concurrency, content, expiry, faults, isolation

_THEMES = (content, isolation, expiry, faults, concurrency)
CASES = tuple(one for theme in _THEMES for one in vars(theme).values() if isinstance(one, Case))

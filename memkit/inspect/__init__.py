"""inspect_session: one session, decoded, redacted and checked."""

from memkit.formats.capture import load_capture
from memkit.inspect.report import SessionReport
from memkit.inspect.search import inspect_session

__all__ = ["SessionReport", "inspect_session", "load_capture"]

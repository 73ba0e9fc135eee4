"""Read a live Redis without changing it; every command is counted."""

from __future__ import annotations

from memkit.readonly.connection import Wire
from memkit.readonly.reader import Reader, reading

__all__ = ["Reader", "Wire", "reading"]

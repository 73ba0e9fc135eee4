"""history: what happened to a session, from logs, snapshots, a replica's backlog and recordings."""

from memkit.history.record import RecordingSummary, record
from memkit.history.run import History, history

__all__ = ["History", "RecordingSummary", "history", "record"]

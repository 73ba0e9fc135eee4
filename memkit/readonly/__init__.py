"""Read a Redis without changing it: one connection class, one way to open a target; every command is counted."""

from memkit.readonly.connection import ReadOnlyConnection
from memkit.readonly.reader import Reader
from memkit.readonly.target import Target, open_target
from memkit.readonly.values import KeyRequest, RedisValue

__all__ = ["KeyRequest", "ReadOnlyConnection", "Reader", "RedisValue", "Target", "open_target"]

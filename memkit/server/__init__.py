"""A private Redis for tests: launcher, movable clock, sandbox."""

from memkit.server.clock import ServerClock
from memkit.server.launcher import RedisServer, ServerBinary, find_server, free_port, installed_servers
from memkit.server.sandbox import Sandbox

__all__ = ["RedisServer", "Sandbox", "ServerBinary", "ServerClock", "find_server", "free_port", "installed_servers"]

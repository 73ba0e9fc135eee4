"""Every exception and warning of memkit. Errors of Redis itself (``redis.exceptions``) pass through unchanged.

::

    MemkitError
    ├── PolicyError (ValueError)        an invalid expiry policy, prefix or session id
    ├── EncodeError (ValueError)        a value that cannot be stored exactly; nothing was changed
    ├── DecodeError (ValueError)        stored bytes that are foreign, damaged or newer; nothing was changed
    ├── SessionNotFound (LookupError)   the session does not exist
    ├── AmbiguousSession (LookupError)  an id that matches sessions of several stores; ``keys`` lists them
    ├── Conflict                        the session was written since the given version
    ├── SandboxError                    a sandbox that cannot be made, or a command that leaves it
    │   ├── LeftSandboxError            the server refused a command that leaves the sandbox
    │   └── ProductionGuardError        memkit was not allowed to write to this server
    ├── SourceError (ValueError)        an RDB file, an append-only file or a recording that cannot be read
    └── ServerError                     a private server that did not start or has ended
        ├── ServerNotFound              no server binary on this machine
        └── ClockUnavailable            time cannot be moved on this server

    UserWarning
    ├── NoTtlWarning                    a MemoryStore was made without ``ttl=``
    └── PolicyShortenedWarning          a shorter policy was not applied to an existing session

A message contains what was found, what was expected and what to do next.
"""

from redis.exceptions import NoPermissionError


class MemkitError(Exception):
    """The root of memkit's exceptions."""


class PolicyError(MemkitError, ValueError):
    """An invalid expiry policy, prefix or session id; the message names the value and its unit."""


class EncodeError(MemkitError, ValueError):
    """A value that Redis would not return exactly as it was; nothing was written."""


class DecodeError(MemkitError, ValueError):
    """Stored bytes that are foreign, damaged or newer than this memkit; the message names the unchanged key."""


class SessionNotFound(MemkitError, LookupError):
    """The session does not exist: it was never saved, or it was expired, evicted or deleted."""


class AmbiguousSession(MemkitError, LookupError):
    """A session id that matches sessions of several stores.

    ``keys`` has a full key of each session, which can be given instead of the id.
    """

    def __init__(self, message: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keys = keys


class Conflict(MemkitError):
    """The session was written by another client since the given version; nothing was changed."""


class SandboxError(MemkitError):
    """A sandbox that cannot be made, or a command that would leave it."""


class LeftSandboxError(SandboxError, NoPermissionError):
    """The server refused a command that would leave the sandbox; also redis-py's NoPermissionError."""


class ProductionGuardError(SandboxError):
    """memkit does not write to this server until it is named; the message contains the signs of use and what to set."""


class SourceError(MemkitError, ValueError):
    """A file or directory that cannot be read as a source: truncated, damaged, foreign, too new; it is not changed."""


class ServerError(MemkitError):
    """A private server that did not start or has ended; the message ends with its log."""


class ServerNotFound(ServerError):
    """No usable redis-server or valkey-server on this machine; the message explains how to get one."""


class ClockUnavailable(ServerError):
    """Time cannot be moved on this server; the message explains why."""


class NoTtlWarning(UserWarning):
    """A MemoryStore was made without ``ttl=``: its sessions never expire. ``ttl=None`` states that on purpose."""


class PolicyShortenedWarning(UserWarning):
    """A store's policy is shorter than the one a session was written under; the session kept its longer deadline."""

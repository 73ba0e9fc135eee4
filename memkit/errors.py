"""Every exception memkit raises; whatever Redis itself raises (``redis.exceptions``) passes through.

::

    MemkitError
    ├── PolicyError (ValueError)        an expiry policy, prefix or session id that cannot be meant
    ├── EncodeError (ValueError)        a value that cannot be stored exactly; nothing was changed
    ├── DecodeError (ValueError)        bytes that are not what they should be; nothing was changed
    ├── SessionNotFound (LookupError)   there is no such session (any more)
    ├── AmbiguousSession (LookupError)  an id that fits several stores' sessions; ``keys`` are there to choose from
    ├── Conflict                        somebody wrote since the version that was given
    ├── SandboxError                    a sandbox that cannot be made, or a command that leaves it
    │   └── ProductionGuardError        memkit will not write to a server it was not allowed to
    ├── SourceError (ValueError)        an RDB file, an append-only file or a recording that cannot be read
    └── ServerError                     a private server that did not start or went away
        ├── ServerNotFound              no server binary on this machine
        └── ClockUnavailable            time cannot be moved here

A message says what was seen, what was expected and what to do next.
"""

from __future__ import annotations


class MemkitError(Exception):
    """The root of memkit's exceptions."""


class PolicyError(MemkitError, ValueError):
    """An expiry policy, prefix or session id that cannot be meant; the message names the value and its unit."""


class EncodeError(MemkitError, ValueError):
    """A value that Redis would not give back exactly as it was; nothing was written."""


class DecodeError(MemkitError, ValueError):
    """Stored bytes that are foreign, damaged or newer than this memkit; the key, named in the message, is as it was."""


class SessionNotFound(MemkitError, LookupError):
    """There is no such session: never saved, expired, evicted or deleted."""


class AmbiguousSession(MemkitError, LookupError):
    """A session id that fits several stores' sessions; ``keys`` holds a full key of each, which always works."""

    def __init__(self, says: str, keys: tuple[str, ...] = ()) -> None:
        super().__init__(says)
        self.keys = keys


class Conflict(MemkitError):
    """The session was written by somebody else since the version that was given; nothing was changed."""


class SandboxError(MemkitError):
    """A sandbox that cannot be made, or a command that would leave it."""


class ProductionGuardError(SandboxError):
    """memkit will not write to this server until it is named; the message says what was seen and what to set."""


class SourceError(MemkitError, ValueError):
    """A file or directory that cannot be read as a source: truncated, damaged, foreign, too new; it is as it was."""


class ServerError(MemkitError):
    """A private server that did not start, or is not there any more; the message ends with its log."""


class ServerNotFound(ServerError):
    """No usable redis-server or valkey-server on this machine; the message says how to get one."""


class ClockUnavailable(ServerError):
    """Time cannot be moved on this server; the message says why."""


class PolicyShortenedWarning(UserWarning):
    """A store's policy is shorter than the one a living session was written under; the longer deadline was kept."""

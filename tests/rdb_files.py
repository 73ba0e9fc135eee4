"""RDB files that no server here writes: with a module's data, or of many keys."""

from __future__ import annotations

import anycrc

SAVED_S = 1_700_000_000
START = b"REDIS0011\xfa\x05ctime\x0a%d"
_NAME_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


def with_checksum(data: bytes) -> bytes:
    checksum: int = anycrc.Model("CRC64-REDIS").calc(data)
    return data + checksum.to_bytes(8, "little")


def module_file(opcodes: bytes, name: bytes = b"k", *, beside_keys: bool = False) -> bytes:
    """A file with one key of RedisJSON, with a value of these opcodes, or with such data before all keys."""
    module_id = 0
    for char in "ReJSON-RL":
        module_id = module_id << 6 | _NAME_CHARACTERS.index(char)
    begins = b"\xf7" if beside_keys else b"\x07%c%b" % (len(name), name)
    when = b"\x02\x01" if beside_keys else b""
    data = begins + b"\x81" + (module_id << 10 | 3).to_bytes(8, "big") + when + opcodes
    return with_checksum(START % SAVED_S + data + b"\xff")


def file_of_strings(*keys: tuple[str, int | None], idle_s: int = 0, saved_s: int = SAVED_S) -> bytes:
    """A file of strings of 100 bytes with these names and remaining TTLs in seconds."""
    parts = [START % saved_s]
    for name, left_s in keys:
        if left_s is not None:
            parts.append(b"\xfc" + ((saved_s + left_s) * 1_000).to_bytes(8, "little"))
        parts.append(b"\xf8\x80" + idle_s.to_bytes(4, "big"))
        parts.append(b"\x00%c%b\x40\x64" % (len(name), name.encode()) + b"v" * 100)
    return with_checksum(b"".join(parts) + b"\xff")

"""Read an append-only directory: its manifest, its base file, and the commands that follow, with their timestamps.

Redis 7.0 and later, and Valkey, keep ``appendonlydir``: a manifest that names a base (an RDB file or commands)
and increments (commands). A single ``appendonly.aof`` of an older server is read as one base. Commands are read as a
stream; of a long argument only its beginning and a digest are kept, because no value is needed.
"""

import os
import shlex
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO, NamedTuple

from memkit.errors import SourceError
from memkit.history.rdb import RdbReader, is_rdb

CHUNK_BYTES = 1 << 20
KEPT_BYTES = 4_096
"""How much of an argument is kept: few names of keys are longer, and values are not needed."""
MAX_ARGUMENTS = 1 << 20
"""More arguments than Redis accepts in one command (``1024 * 1024``)."""
MAX_ARGUMENT_BYTES = 512 << 20
MAX_MANIFEST_BYTES = 1 << 20
MAX_LINE_BYTES = 1_024
"""A line that is neither a command nor an argument: a timestamp or another annotation."""
CUT_LOG = (
    "the log ends within a command or a transaction, as a crash leaves it: its last {:,} bytes were not read (a server "
    "with aof-load-truncated starts without them too)"
)
_BASE, _INCREMENT, _HISTORY = "b", "i", "h"
"""The types of files in a manifest."""


class AofCommand(NamedTuple):
    """One command as the server wrote it.

    ``second`` is the Unix time of the last timestamp before it, None without ``aof-timestamp-enabled``. ``arguments``
    begin with the command's name; a long argument is ``shortened``. ``offset`` is where it begins in its file.
    """

    arguments: tuple[bytes, ...]
    second: int | None
    offset: int


@dataclass(frozen=True, slots=True)
class AofFiles:
    """The files of an append-only directory, in the order in which they are read.

    ``base`` is the RDB file with which the log begins, None if it began on an empty server; ``logs`` hold commands. A
    single file of an old server may be both. ``base_has_commands``: the first of the logs is the base (without
    ``aof-use-rdb-preamble``), so its commands write what existed when it was made.
    """

    directory: Path
    base: Path | None
    logs: tuple[Path, ...]
    base_has_commands: bool = False

    @property
    def all(self) -> tuple[Path, ...]:
        """Every file once."""
        return tuple(dict.fromkeys([*([self.base] if self.base else []), *self.logs]))


def find_aof(path: str | Path) -> AofFiles:
    """Return the files of an append-only directory, as its manifest names them.

    Args:
        path: ``appendonlydir``, the directory that holds it, the manifest, or a single ``appendonly.aof``.

    Raises:
        SourceError: There is no manifest, there are several, or a file that it names is missing.
    """
    given = Path(path)
    if given.is_file() and not given.name.endswith(".manifest"):
        return AofFiles(given.parent, given if is_rdb(given) else None, (given,))
    manifest = given if given.is_file() else _manifest_in(given)
    if manifest.stat().st_size > MAX_MANIFEST_BYTES:
        raise SourceError(f"{manifest}: the manifest is larger than any that a server writes")
    lines = enumerate(manifest.read_text("utf-8", "replace").splitlines(), 1)
    entries = [_manifest_line(manifest, *line) for line in lines if line[1].strip() and not line[1].startswith("#")]
    bases = [file for kind, _, file in entries if kind == _BASE]
    if len(bases) > 1:
        raise SourceError(f"{manifest}: the manifest names {len(bases)} base files; expected one at most")
    files = (*bases, *(file for kind, _, file in sorted(entries) if kind == _INCREMENT))
    if not files:
        raise SourceError(f"{manifest}: the manifest names no file")
    for file in files:
        if not file.is_file():
            raise SourceError(f"{file}: the manifest names this file, but it does not exist")
    if bases and is_rdb(files[0]):
        return AofFiles(manifest.parent, files[0], files[1:])
    return AofFiles(manifest.parent, None, files, base_has_commands=bool(bases))


def is_of_a_cluster(files: AofFiles) -> bool:
    """Return whether a server of a cluster keeps its view of the nodes beside its log (``cluster-config-file``)."""
    folders = (files.directory, files.directory.parent)
    return any(b"myself" in path.read_bytes() for folder in folders for path in folder.glob("nodes*.conf"))


def _manifest_in(directory: Path) -> Path:
    if not directory.is_dir():
        raise SourceError(f"{directory}: there is no such file or directory")
    for folder in (directory, directory / "appendonlydir"):
        found = sorted(folder.glob("*.manifest"))
        if len(found) > 1:
            names = ", ".join(one.name for one in found)
            raise SourceError(f"{folder}: there are {len(found)} manifests ({names}); give the one to read")
        if found:
            return found[0]
    raise SourceError(f"{directory}: there is no append-only file in it: no *.manifest was found")


def _manifest_line(manifest: Path, number: int, line: str) -> tuple[str, int, Path]:
    """Return the type, sequence number and path of ``file NAME seq N type b``; NAME may be quoted."""
    try:
        words = shlex.split(line)
        fields = dict(zip(words[::2], words[1::2], strict=True))
        name, kind = fields["file"], fields["type"]
        if "/" in name or name in ("", ".", "..") or kind not in (_BASE, _INCREMENT, _HISTORY):
            raise ValueError("a file outside the directory, or of an unknown type")
        return kind, int(fields["seq"]), manifest.parent / name
    except (KeyError, ValueError):
        raise SourceError(
            f"{manifest}: line {number} is not understood; expected file NAME seq NUMBER type b, i or h"
        ) from None


def read_commands(
    path: Path, *, second: int | None = None, size: int | None = None, cuts: list[int] | None = None
) -> Iterator[AofCommand]:
    """Yield the commands of one append-only file, in order.

    Args:
        path: A file of commands.
        second: The Unix time that was last stated before this file.
        size: How much of the file is read: a server may be writing; None: what is there at first.
        cuts: For a file that may end within a command or a transaction, as a crash leaves it: where that begins is
            added. A server starts without it too (``aof-load-truncated``).

    Raises:
        SourceError: The file ends in the middle of a command, or holds something that is not a command.
    """
    begins = 0
    if is_rdb(path):  # a single file of an old server may begin with an RDB file
        with RdbReader(path) as reader:
            deque(reader, maxlen=0)
            begins = reader.bytes_read
    with path.open("rb", buffering=CHUNK_BYTES) as file:
        stream = _Stream(path, file, begins, size)
        start, transaction = begins, list[AofCommand]()
        try:
            while (line := stream.line()) is not None:
                if line.startswith(b"*"):
                    command = AofCommand(stream.command(line), second, start)
                    name = command.arguments[0].upper()
                    if name == b"MULTI" or (transaction and name != b"EXEC"):
                        transaction.append(command)
                    else:
                        yield from transaction
                        transaction.clear()
                        yield command
                elif not line.startswith(b"#"):
                    raise stream.damaged("a line that is neither a command nor an annotation")
                elif line.startswith(b"#TS:") and line[4:].isdigit():
                    second = int(line[4:])
                start = stream.offset
            if transaction:
                raise stream.ends_early()
        except _EndsEarly:
            start = transaction[0].offset if transaction else start
            if cuts is None or not start:
                raise
            cuts.append(start)


def shortened(argument: bytes) -> bytes:
    """Return an argument, or the beginning of a long one with a digest of its rest: two names of keys stay two."""
    if len(argument) <= KEPT_BYTES:
        return argument
    return argument[:KEPT_BYTES] + blake2b(argument[KEPT_BYTES:], digest_size=16).hexdigest().encode()


class _EndsEarly(SourceError):
    """The file ends in the middle of a command or a transaction."""


class _Stream:
    """A file read in chunks: lines, numbers and length-prefixed arguments.

    ``offset`` is how far the file has been read.
    """

    def __init__(self, path: Path, file: BinaryIO, offset: int, size: int | None) -> None:
        self._path, self._file, self.offset = path, file, offset
        file.seek(offset)
        self._size = os.fstat(file.fileno()).st_size if size is None else size

    def line(self) -> bytes | None:
        """Return the next line without its end, or None at the end of the file."""
        if self.offset >= self._size:
            return None
        line = self._file.readline(MAX_LINE_BYTES)
        end = self.offset + len(line)
        if line[-2:] != b"\r\n" or end > self._size:
            whole = end <= self._size and (line.endswith(b"\n") or len(line) == MAX_LINE_BYTES)
            raise self.damaged("a line without an end") if whole else self.ends_early()
        self.offset = end
        return line[:-2]

    def number(self, line: bytes, *, most: int) -> int:
        """Return the number after a line's first character."""
        digits = line[1:]
        if digits.isdigit() and (number := int(digits)) <= most:
            return number
        raise self.damaged("a length that is not a number, or too large")

    def command(self, line: bytes) -> tuple[bytes, ...]:
        """Return the arguments that follow a line with their number."""
        arguments = tuple(self.argument() for _ in range(self.number(line, most=MAX_ARGUMENTS)))
        if not arguments:
            raise self.damaged("a command without a name")
        return arguments

    def argument(self) -> bytes:
        """Return the next argument, shortened."""
        line = self.line()
        if line is None:
            raise self.ends_early()
        if not line.startswith(b"$"):
            raise self.damaged("an argument without its length")
        length = self.number(line, most=MAX_ARGUMENT_BYTES)
        if length + 2 > self._size - self.offset:
            raise self.ends_early()
        kept = self._file.read(min(length, CHUNK_BYTES) + 2)
        if length > CHUNK_BYTES:
            self._file.seek(length - CHUNK_BYTES - 2, os.SEEK_CUR)
            kept = kept[:CHUNK_BYTES] + self._file.read(2)
        if not kept.endswith(b"\r\n"):
            raise self.damaged("an argument without an end")
        self.offset += length + 2
        return shortened(kept[:-2])

    def ends_early(self) -> SourceError:
        return _EndsEarly(
            f"{self._path}: the append-only file is truncated: it ends after {self._size:,} bytes, in the middle of a "
            "command (redis-check-aof shows where)"
        )

    def damaged(self, what: str) -> SourceError:
        return SourceError(f"{self._path}: the append-only file is damaged near byte {self.offset:,}: {what}")

# SPDX-License-Identifier: MIT
"""The log of crash-preload.c: its records, and the operations that they mean.

An operation on data is a list of pieces, each of whole 512-byte sectors: the
medium keeps or loses sectors, and the kernel writes a sector as it is in the
page cache at that time, so the part of a sector that a write did not touch is
what earlier writes made of it. normalise() fills these parts in, once, by
replaying the log from start to end. After that any choice of sectors is a
state that the medium may have.
"""

import ctypes
import mmap
import os
import struct
from dataclasses import dataclass, field

SECTOR = 512

HEADER = struct.Struct("=IHHQQQQIIQ")
MAGIC = 0x43524153

(EXISTING, MADE, UNNAMED, WRITE, TRUNCATE, FALLOCATE, SYNC, RANGE_SYNC, RENAME, LINK, UNLINK,
 UNSUPPORTED) = range(1, 13)
NAMES = ["", "existing", "made", "unnamed", "write", "truncate", "fallocate", "sync", "range-sync",
         "rename", "link", "unlink", "unsupported"]

FLAG_SYNCED = 1
FLAG_FOLDER = 2
FLAG_EVERYTHING = 4

FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 16
RENAME_EXCHANGE = 2

_libc = ctypes.CDLL(None, use_errno=True)


class LogError(Exception):
    """The log cannot be read, or does not explain what the command left."""


@dataclass
class Operation:
    """One event. start and end are positions in the log: an event A ended
    before B began exactly if A.end <= B.start."""

    kind: int
    flags: int
    start: int
    end: int
    handle: int
    offset: int
    length: int
    mode: int
    payload: int                      # where the data is in the log
    names: tuple = ()
    file: int = -1                    # number of the file, see Log
    pieces: list = field(default_factory=list)
    size_after: int = -1              # what the operation extends the file to, if anything

    def is_data(self):
        """Its sectors may be kept or lost one by one."""
        return self.kind in (WRITE, FALLOCATE)

    def describe(self):
        text = NAMES[self.kind]
        if self.file >= 0:
            text += f" file {self.file}"
        if self.names:
            text += " " + " -> ".join(os.path.basename(name) for name in self.names)
        if self.kind in (WRITE, FALLOCATE, RANGE_SYNC, UNSUPPORTED):
            text += f" offset {self.offset:#x} bytes {self.length:#x}"
        if self.kind == TRUNCATE:
            text += f" size {self.offset:#x}"
        if self.kind == FALLOCATE:
            text += f" mode {self.mode:#x}"
        for flag, name in ((FLAG_SYNCED, "synced"), (FLAG_FOLDER, "folder"), (FLAG_EVERYTHING, "everything")):
            if self.flags & flag:
                text += " " + name
        return text


@dataclass
class Piece:
    """Whole sectors of new content: bytes of the log, own bytes, or zeroes."""

    offset: int
    length: int
    log_offset: int = -1
    data: bytes = None

    def content(self, log, start, length):
        """The bytes, or None for zeroes. start counts from the piece's offset."""
        if self.data is not None:
            return self.data[start:start + length]
        if self.log_offset < 0:
            return None
        at = self.log_offset + start
        return log[at:at + length]


def put(fd, log, piece, start, length, limit):
    """Writes part of a piece, but nothing at or past the byte limit."""
    offset = piece.offset + start
    length = min(length, limit - offset)
    if length <= 0:
        return
    data = piece.content(log, start, length)
    if data is not None:
        os.pwrite(fd, data, offset)
        return
    size = os.fstat(fd).st_size
    if offset + length > size:
        os.ftruncate(fd, offset + length)
        length = min(length, size - offset)
    if length > 0:
        zero(fd, offset, length)


def zero(fd, offset, length):
    """Zeroes a range within the file, as a hole where that can be."""
    mode = FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE
    if _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        while length > 0:
            part = min(length, 1 << 20)
            os.pwrite(fd, bytes(part), offset)
            offset += part
            length -= part


def apply_whole(fd, log, operation):
    """Applies an operation on data or size to an open file."""
    if operation.kind == TRUNCATE:
        os.ftruncate(fd, operation.offset)
        return
    limit = max(os.fstat(fd).st_size, operation.size_after)
    for piece in operation.pieces:
        put(fd, log, piece, 0, piece.length, limit)
    if os.fstat(fd).st_size < operation.size_after:
        os.ftruncate(fd, operation.size_after)


def copy_sparse(source, target):
    """Copies a file with its holes."""
    with open(source, "rb") as src, open(target, "wb") as dst:
        size = os.fstat(src.fileno()).st_size
        os.ftruncate(dst.fileno(), size)
        at = 0
        while at < size:
            try:
                begin = os.lseek(src.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(src.fileno(), begin, os.SEEK_HOLE)
            os.lseek(dst.fileno(), begin, os.SEEK_SET)
            while begin < at:
                done = os.sendfile(dst.fileno(), src.fileno(), begin, at - begin)
                if done == 0:
                    break
                begin += done


class Names:
    """The names in the folder: name -> number of the file."""

    def __init__(self, names):
        self.names = dict(names)

    def apply(self, operation):
        own = [os.path.basename(name) for name in operation.names]
        if operation.kind == MADE:
            self.names[own[0]] = operation.file
        elif operation.kind == LINK:
            self.names[own[1]] = operation.file
        elif operation.kind == UNLINK:
            self.names.pop(own[0], None)
        elif operation.kind == RENAME:
            old, new = own
            if operation.mode & RENAME_EXCHANGE:
                self.names[old], self.names[new] = self.names[new], self.names[old]
            elif old in self.names and self.names.get(new) != self.names[old]:
                self.names[new] = self.names.pop(old)


class Log:
    """The operations of a log, in order.

    before is the folder with the files as they were; its files have the numbers
    0 and up, files that the command made follow. folder is where the command ran.
    """

    def __init__(self, path, before, folder):
        self.before = before
        self.folder = os.path.realpath(folder)
        self.initial = {name: number for number, name in enumerate(sorted(os.listdir(before)))}
        self.file_count = len(self.initial)
        with open(path, "rb") as log:
            size = os.fstat(log.fileno()).st_size
            self.bytes = mmap.mmap(log.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        self.operations = [operation for operation in self._parse() if self._is_ours(operation)]
        self._resolve()

    def _parse(self):
        at = 0
        while at < len(self.bytes):
            if at + HEADER.size > len(self.bytes):
                raise LogError("the log ends within a record")
            (magic, kind, flags, start, handle, offset, length, mode, _thread,
             payload_bytes) = HEADER.unpack_from(self.bytes, at)
            payload = at + HEADER.size
            end = payload + payload_bytes
            if magic != MAGIC or end > len(self.bytes):
                raise LogError(f"no record at byte {at} of the log")
            names = ()
            if kind in (EXISTING, MADE, UNNAMED, RENAME, LINK, UNLINK):
                names = tuple(os.fsdecode(name) for name in self.bytes[payload:end].split(b"\0")[:-1])
            yield Operation(kind, flags, start, end, handle, offset, length, mode, payload, names)
            at = end

    def _in_folder(self, name):
        return os.path.dirname(name) == self.folder

    def _is_ours(self, operation):
        """Names in other folders do not matter, except of what comes in from or goes out to them."""
        if operation.kind in (RENAME, LINK):
            inside = [self._in_folder(name) for name in operation.names]
            if operation.kind == RENAME and inside[0] != inside[1]:
                raise LogError("a rename across folders cannot be replayed")
            return inside[1]
        if operation.kind in (EXISTING, MADE, UNLINK):
            return self._in_folder(operation.names[0])
        return True

    def _resolve(self):
        """Gives every operation the number of its file."""
        numbers = {}
        names = Names(self.initial)
        for operation in self.operations:
            if operation.kind == EXISTING:
                name = os.path.basename(operation.names[0])
                if name not in names.names:
                    raise LogError(f"the log opens {name}, which was not there")
                numbers[operation.handle] = names.names[name]
            elif operation.kind in (MADE, UNNAMED):
                numbers[operation.handle] = self.file_count
                self.file_count += 1
            if operation.kind == LINK and operation.handle not in numbers:
                operation.file = names.names[os.path.basename(operation.names[0])]
            elif operation.handle:
                operation.file = numbers.get(operation.handle, -1)
            names.apply(operation)
        self.operations = [operation for operation in self.operations
                           if operation.file >= 0 or operation.kind in (SYNC, RENAME, UNLINK)]

    def lay_out(self, folder):
        """Makes the files as they were before, each under its number."""
        os.makedirs(folder, exist_ok=True)
        for number in range(self.file_count):
            open(os.path.join(folder, str(number)), "wb").close()
        for name, number in self.initial.items():
            copy_sparse(os.path.join(self.before, name), os.path.join(folder, str(number)))

    def normalise(self, scratch):
        """Fills in the pieces; returns the names that are there at the end.

        Afterwards scratch holds what the whole log makes of the files.
        """
        self.lay_out(scratch)
        names = Names(self.initial)
        fds = [os.open(os.path.join(scratch, str(number)), os.O_RDWR) for number in range(self.file_count)]
        try:
            for operation in self.operations:
                names.apply(operation)
                if operation.is_data():
                    self._normalise_data(operation, fds[operation.file])
                elif operation.kind == TRUNCATE:
                    os.ftruncate(fds[operation.file], operation.offset)
        finally:
            for fd in fds:
                os.close(fd)
        return names

    def _normalise_data(self, operation, fd):
        begin, end = operation.offset, operation.offset + operation.length
        size = os.fstat(fd).st_size
        if operation.kind == WRITE:
            plain = Piece(begin, operation.length, operation.payload)
            operation.size_after = end
        else:
            zeroes = operation.mode & (FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE)
            if operation.mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE | FALLOC_ZERO_RANGE):
                raise LogError(f"fallocate mode {operation.mode:#x} cannot be replayed")
            if not operation.mode & FALLOC_KEEP_SIZE:
                operation.size_after = end
            end = min(end, max(size, operation.size_after))
            plain = Piece(begin, end - begin) if zeroes and end > begin else None
        if plain is not None:
            put(fd, self.bytes, plain, 0, plain.length, end)
        if os.fstat(fd).st_size < operation.size_after:
            os.ftruncate(fd, operation.size_after)
        if plain is not None and end > begin:
            operation.pieces = list(self._whole_sectors(plain, begin, end, fd))

    def _whole_sectors(self, plain, begin, end, fd):
        """Splits a range into sectors; those at its edges get the content that they have now."""
        first = begin - begin % SECTOR
        last = end + -end % SECTOR
        inner_first = begin + -begin % SECTOR
        inner_last = end - end % SECTOR

        def edge(offset):
            return Piece(offset, SECTOR, data=os.pread(fd, SECTOR, offset).ljust(SECTOR, b"\0"))

        if first < inner_first:
            yield edge(first)
        if inner_first < inner_last:
            log_offset = plain.log_offset + inner_first - begin if plain.log_offset >= 0 else -1
            yield Piece(inner_first, inner_last - inner_first, log_offset)
        if inner_last < last and not (first < inner_first and last == first + SECTOR):
            yield edge(inner_last)

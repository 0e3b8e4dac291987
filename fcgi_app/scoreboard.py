"""What the workers of a pool do, in memory that they share with their supervisor.

One memory file for each pool: a header, which the supervisor writes, and slots of
512 bytes, each written by one worker. Whoever has the descriptor may read all of it
at any moment; nobody ever waits for anybody. Each part has a sequence number, which
is odd while the part is being written: who reads copies, looks whether the number is
still the same, and tries again if not (a seqlock).

The file is made by the supervisor and inherited by the workers, which learn the
descriptor and the slot from ``_FCGI_APP_SCOREBOARD=FD:SLOT``. Its size is sealed, so
that no worker can make the others' memory vanish.

Times are seconds of CLOCK_MONOTONIC, which is the same clock for all processes.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from .slots import (
    COUNTS,
    COUNTS_AT,
    CURRENT,
    ENDING,
    FIXED,
    FREE,
    HEADER,
    HEADER_AT,
    HEADER_SEQUENCE,
    HEADER_SIZE,
    IDLE,
    MAGIC,
    ONCE,
    ONCE_AT,
    RUNNING,
    SCRIPT_SIZE,
    SLOT,
    SLOT_SIZE,
    STARTING,
    STATES,
    VERSION,
    WORD_SIZE,
    Header,
    SlotState,
    is_real_time,
    text_of,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


__all__ = [
    "ENDING",
    "FREE",
    "IDLE",
    "RUNNING",
    "STARTING",
    "VARIABLE",
    "Header",
    "Scoreboard",
    "SlotState",
    "SlotWriter",
]

VARIABLE = "_FCGI_APP_SCOREBOARD"
"""Environment variable of a worker: descriptor and slot, as in ``7:3``."""

_TRIES = 20
"""Looks at a part that is being written; to write one takes a microsecond."""


class Scoreboard:
    """See the module's docstring; made by ``create`` or ``open_fd``.

    Attributes:
        capacity: number of slots.
    """

    def __init__(self, fd: int, capacity: int, memory: mmap.mmap) -> None:
        self.capacity = capacity
        self._fd = fd
        self._memory = memory
        self._view = memoryview(memory)
        self._words = self._view.cast("I")
        self._last: dict[int, SlotState] = {}
        self._last_header = Header()

    @classmethod
    def create(cls, name: str, capacity: int) -> Scoreboard:
        """Make the memory file of a pool; its descriptor is not inheritable.

        Raises:
            OSError: the system has no descriptor or no memory for it (RLIMIT_FSIZE
                counts); names the scoreboard.
        """
        fd = -1
        try:
            fd = _memory_file(f"fcgi_app {name}"[:100])
            size = HEADER_SIZE + capacity * SLOT_SIZE
            os.ftruncate(fd, size)
            _seal(fd)
            os.pwrite(fd, FIXED.pack(MAGIC, VERSION, capacity, SLOT_SIZE), 0)
            board = cls.open_fd(fd)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            error.filename = error.filename or f"scoreboard of pool {name}"
            raise
        board.write_header(name=name)
        return board

    @classmethod
    def open_fd(cls, fd: int) -> Scoreboard:
        """Map a scoreboard; from then on the descriptor is the scoreboard's.

        One that is open for reading only gives a scoreboard to read.

        Raises:
            ValueError: it is none, or one of another version of fcgi_app; the
                descriptor stays the caller's.
            OSError: the descriptor is not open, or cannot be mapped.
        """
        fixed = os.pread(fd, FIXED.size, 0)
        if len(fixed) < FIXED.size or fixed[:8] != MAGIC:
            raise ValueError(f"descriptor {fd} is no scoreboard")
        _, version, capacity, slot_size = FIXED.unpack(fixed)
        if (version, slot_size) != (VERSION, SLOT_SIZE):
            raise ValueError(f"descriptor {fd} is a scoreboard of another version")
        size = HEADER_SIZE + capacity * slot_size
        if os.fstat(fd).st_size != size:
            raise ValueError(f"descriptor {fd} is a scoreboard of the wrong size")
        writable = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        return cls(fd, capacity, mmap.mmap(fd, size, access=access))

    def fileno(self) -> int:
        """Return the descriptor; -1 once it has been closed."""
        return self._fd

    def close_descriptor(self) -> None:
        """Close the descriptor and keep the memory, which does without it."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Give memory and descriptor back; idempotent. Slots cannot be used then."""
        self.close_descriptor()
        self._words.release()
        self._view.release()
        self._memory.close()

    # The header

    @property
    def header(self) -> Header:
        """What the supervisor has written; the last that was whole."""
        data = self._copy(HEADER_SEQUENCE, HEADER_AT, HEADER.size)
        if data is not None:
            *values, name, manager, status_path, ping_path = HEADER.unpack(data)
            paths = [os.fsdecode(p.rstrip(b"\0")) for p in (status_path, ping_path)]
            fields: list[Any] = [text_of(name), text_of(manager), *values, *paths]
            self._last_header = Header(*fields)
        return self._last_header

    def write_header(self, **changes: object) -> None:
        """Change some of ``Header``'s values; for the supervisor alone.

        Raises:
            ValueError: a path is longer than 256 bytes, which nobody could compare.
        """
        fields = {**vars(self.header), **changes}
        paths = [os.fsencode(fields.pop(key)) for key in ("status_path", "ping_path")]
        for path in paths:
            if len(path) > 256:
                raise ValueError(f"path of {len(path)} bytes: more than 256")
        texts = [str(fields.pop(key)).encode() for key in ("name", "manager")]
        values = [fields.pop(key) for key in [*vars(self._last_header)][2:-2]]
        if fields:
            raise TypeError(f"a header has no {', '.join(fields)}")
        data = HEADER.pack(*values, *texts, *paths)
        self._write(HEADER_SEQUENCE, HEADER_AT, data)

    # Slots, for the supervisor

    def take_slot(self) -> int | None:
        """Take a free slot for a worker that is to be started; None: there is none."""
        for number in range(self.capacity):
            at = self._at(number)
            if self._words[(at + COUNTS_AT) // WORD_SIZE] == FREE:
                self._fill(number, STARTING)
                return number
        return None

    def free_slot(self, number: int) -> None:
        """Give back the slot of a worker that has ended."""
        self._fill(number, FREE)

    def configure_slot(self, number: int, *, max_requests: int = 0) -> None:
        """Say after how many requests the worker is to end, before it is started."""
        at = self._at(number)
        self._write(at, at + ONCE_AT, ONCE.pack(0, 0, 0, max_requests))

    def _fill(self, number: int, state: int) -> None:
        at = self._at(number)
        self._last.pop(number, None)
        data = bytearray(SLOT_SIZE - WORD_SIZE)
        CURRENT.pack_into(
            data,
            COUNTS_AT - WORD_SIZE,
            *(state, 0, 0, 0.0, 0.0, 0.0, -1),
            *(b"", b"", b"", b""),
        )
        self._write(at, at + WORD_SIZE, data)

    # Slots, for a worker

    def slot(self, number: int) -> SlotWriter:
        """Return what writes a slot; its process must be the only one that does.

        Raises:
            ValueError: there is no such slot, or it is free.
        """
        if not 0 <= number < self.capacity:
            raise ValueError(f"no slot {number}: there are {self.capacity}")
        if self._words[(self._at(number) + COUNTS_AT) // WORD_SIZE] == FREE:
            raise ValueError(f"slot {number} is nobody's")
        return SlotWriter(self, number)

    # For whoever looks

    def read(self, number: int) -> SlotState | None:
        """Return what a worker does; None: the slot is free.

        Where it cannot be read in a few tries, since a worker was killed while it
        wrote, the last that was seen.
        """
        at = self._at(number)
        data = self._copy(at, at, SLOT.size)
        if data is None:
            return self._last.get(number)
        (_, pid, threads, number_of_signal, max_requests, *values) = SLOT.unpack(data)
        state, active, requests, started, duration, since, length, *texts = values
        if state == FREE:
            self._last.pop(number, None)
            return None
        method, uri, script, remote = map(text_of, texts)
        seen = self._last[number] = SlotState(
            number,
            pid,
            STATES[state] if state < len(STATES) else "starting",
            threads,
            active,
            requests,
            started,
            duration,
            since,
            method,
            uri,
            script,
            remote,
            length,
            number_of_signal if is_real_time(number_of_signal) else 0,
            max_requests,
        )
        return seen

    def read_all(self) -> list[SlotState]:
        """Return what every worker does, by slot."""
        states = (self.read(number) for number in range(self.capacity))
        return [state for state in states if state is not None]

    # Memory

    def _at(self, number: int) -> int:
        return HEADER_SIZE + number * SLOT_SIZE

    def _copy(self, sequence_at: int, at: int, size: int) -> bytes | None:
        """Return a part as it was at one moment; None: that could not be had."""
        word = sequence_at // WORD_SIZE
        for _ in range(_TRIES):
            before = self._words[word]
            if not before & 1:
                data = bytes(self._view[at : at + size])
                if self._words[word] == before:
                    return data
            os.sched_yield()
        return None

    def _write(self, sequence_at: int, at: int, data: bytes | bytearray) -> None:
        word = sequence_at // WORD_SIZE
        odd = self._words[word] | 1
        self._words[word] = odd
        self._view[at : at + len(data)] = data
        self._words[word] = (odd + 1) & 0xFFFFFFFF


class SlotWriter:
    """A worker's own slot; calls must not overlap.

    Args:
        board: the scoreboard that the slot is in.
        number: of the slot.

    Attributes:
        max_requests: after so many the worker is to end; 0: never.
    """

    def __init__(self, board: Scoreboard, number: int) -> None:
        at = board._at(number)
        self.board = board
        self.number = number
        self._view = board._view
        self._words = board._words
        self._word = at // WORD_SIZE
        self._once_at = at + ONCE_AT
        self._counts_at = at + COUNTS_AT
        _, _, _, self.max_requests = ONCE.unpack_from(self._view, self._once_at)

    @property
    def memory(self) -> memoryview:
        """All of the slot, for whoever writes it in place of this."""
        at = self._word * WORD_SIZE
        return self._view[at : at + SLOT_SIZE]

    def claim(self, pid: int, threads: int, traceback_signal: int) -> bool:
        """Say whose slot it is; False: another process was first.

        A script may fork its own copies before the first request, and all inherit
        the slot. Needs the scoreboard's descriptor.
        """
        fd, at = self.board.fileno(), self._word * WORD_SIZE
        fcntl.lockf(fd, fcntl.LOCK_EX, SLOT_SIZE, at)
        try:
            owner, _, _, most = ONCE.unpack_from(self._view, self._once_at)
            if owner not in (0, pid):
                return False
            once = ONCE.pack(pid, threads, traceback_signal, most)
            self.board._write(at, self._once_at, once)
        finally:
            fcntl.lockf(fd, fcntl.LOCK_UN, SLOT_SIZE, at)
        return True

    def write_threads(self, threads: int) -> None:
        """Say how many requests the process can serve at the same time."""
        at = self._word * WORD_SIZE
        pid, _, number, most = ONCE.unpack_from(self._view, self._once_at)
        self.board._write(at, self._once_at, ONCE.pack(pid, threads, number, most))

    def write_current(
        self,
        state: int,
        active: int,
        requests: int,
        started: float,
        duration: float,
        since: float,
        length: int,
        method: bytes,
        uri: bytes,
        script: bytes,
        remote: bytes,
    ) -> None:
        """Write the counts and the request that they are about.

        The texts may have any length; they are cut to what there is room for. What
        each value is, ``SlotState`` tells; ``state`` is IDLE, RUNNING or ENDING.
        """
        words, word = self._words, self._word
        odd = words[word] | 1
        words[word] = odd
        CURRENT.pack_into(
            self._view,
            self._counts_at,
            state,
            active,
            requests,
            started,
            duration,
            since,
            length,
            method,
            uri,
            script[-SCRIPT_SIZE:],
            remote,
        )
        words[word] = (odd + 1) & 0xFFFFFFFF

    def write_counts(
        self,
        state: int,
        active: int,
        requests: int,
        started: float,
        duration: float,
        since: float,
    ) -> None:
        """Write the counts alone; what was the request stays to be seen."""
        words, word = self._words, self._word
        odd = words[word] | 1
        words[word] = odd
        COUNTS.pack_into(
            self._view,
            self._counts_at,
            state,
            active,
            requests,
            started,
            duration,
            since,
        )
        words[word] = (odd + 1) & 0xFFFFFFFF


def _memory_file(name: str) -> int:
    if hasattr(os, "memfd_create"):
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        return os.memfd_create(name, flags)
    from tempfile import TemporaryFile  # systems other than Linux

    with TemporaryFile() as file:
        return fcntl.fcntl(file.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)


def _seal(fd: int) -> None:
    """Keep everybody from changing the size: memory that is gone is SIGBUS."""
    if hasattr(fcntl, "F_ADD_SEALS"):
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        try:
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
        except OSError:  # only a memory file can be sealed
            pass

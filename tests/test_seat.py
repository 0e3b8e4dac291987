"""fcgi_app.launcher.seat: scoreboards and slots, as a supervisor has them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from fcgi_app.launcher.pool import PoolConfig, ServiceConfig
from fcgi_app.launcher.seat import Boards, Seat
from fcgi_app.scoreboard import Scoreboard
from fcgi_app.slots import IDLE


def pool(name: str = "main", workers: int = 1, **more: Any) -> PoolConfig:
    bind = (f"@{name}",)
    return PoolConfig(name=name, bind=bind, command=("/x",), workers=workers, **more)


@pytest.fixture
def boards() -> Iterator[Boards]:
    opened = Boards()
    yield opened
    opened.close()


def serve(seat: Seat, pid: int, requests: int) -> None:
    """Be the worker that has the seat."""
    board = Scoreboard.open_fd(os.dup(seat.board.fileno()))
    slot = board.slot(seat.number)
    assert slot.claim(pid, 1, 0)
    slot.write_counts(IDLE, 0, requests, 0.0, 0.0, 1.0)
    del slot
    board.close_descriptor()


def test_seat_tells_of_its_worker_alone(boards: Boards) -> None:
    """Nothing before it has been taken, and nothing of a child that has taken it."""
    seat = Seat.take(boards.provide(pool()), 7)
    assert seat is not None
    assert seat.look(123) is None
    serve(seat, 123, 4)
    state = seat.look(123)
    assert state is not None
    assert (state.requests, state.max_requests, state.state) == (4, 7, "idle")
    assert seat.look(124) is None


def test_requests_of_ended_workers_stay_counted(boards: Boards) -> None:
    """Each slot that is given back adds its own, and can be taken again."""
    board = boards.provide(pool())
    for requests in (3, 4):
        seat = Seat.take(board, 0)
        assert seat is not None
        assert seat.number == 0
        serve(seat, 99, requests)
        seat.release()
    assert board.header.ended_requests == 7


def test_nonsense_of_a_worker_does_no_harm(boards: Boards) -> None:
    """Numbers beyond 64 bits and paths that are no text are its own affair."""
    board = boards.provide(pool())
    for _ in range(3):
        seat = Seat.take(board, 0)
        assert seat is not None
        serve(seat, 99, 2**64 - 1)
        seat.release()
    assert board.header.ended_requests == 2**63 - 1
    memory = os.pread(board.fileno(), 4096, 0)
    os.pwrite(board.fileno(), memory[:24] + b"\xff" * (len(memory) - 24), 0)
    seat = Seat.take(board, 0)
    assert seat is not None
    serve(seat, 99, 1)
    seat.release()
    boards.describe([pool(status_path="/s")], {})
    assert board.header.status_path == "/s"


def test_all_slots_taken(caplog: pytest.LogCaptureFixture) -> None:
    """The worker runs without one, and the log says so."""
    board = Scoreboard.create("small", 1)
    assert Seat.take(board, 0) is not None
    assert Seat.take(board, 0) is None
    assert "all 1 slots" in caplog.text
    board.close()


def test_board_stays_as_long_as_it_is_large_enough(boards: Boards) -> None:
    """Else there is a new one with the same counts; the old goes with its last user."""
    small = boards.provide(pool(workers=2))
    assert boards.provide(pool(workers=4)) is small
    small.write_header(ended_requests=5, slow_requests=2, restarts=1)
    large = boards.provide(pool(workers=500))
    assert large is not small
    assert boards.current["main"] is large
    header = large.header
    assert (header.ended_requests, header.slow_requests, header.restarts) == (5, 2, 1)
    assert header.started == small.header.started
    service = ServiceConfig(pools=(pool(workers=500),))
    boards.sweep(service, [small, large])
    assert small.fileno() >= 0
    boards.sweep(service, [large])
    assert small.fileno() == -1
    assert large.fileno() >= 0


def test_board_is_put_back_after_a_failed_reload(boards: Boards) -> None:
    """The one that the workers have is the one that is shown; the other is closed."""
    small = boards.provide(pool(workers=2))
    large = boards.provide(pool(workers=500))
    boards.put_back({"main": small})
    assert boards.current["main"] is small
    boards.sweep(ServiceConfig(pools=(pool(workers=2),)), [small])
    assert large.fileno() == -1
    assert small.fileno() >= 0


def test_board_of_a_pool_that_is_gone_is_closed(boards: Boards) -> None:
    """When none of its workers is left."""
    gone, kept = boards.provide(pool("gone")), boards.provide(pool("kept"))
    service = ServiceConfig(pools=(pool("kept"),))
    boards.sweep(service, [gone, kept])
    assert list(boards.current) == ["kept"]
    assert gone.fileno() >= 0
    boards.sweep(service, [])
    assert gone.fileno() == -1
    assert kept.fileno() >= 0


def test_boards_are_taken_over_by_descriptor(
    boards: Boards, caplog: pytest.LogCaptureFixture
) -> None:
    """As after an exec; what is no scoreboard is closed, and a new one made."""
    board = boards.provide(pool())
    board.write_header(ended_requests=9)
    reader, writer = os.pipe()
    os.close(writer)
    after = Boards()
    after.adopt({"main": os.dup(board.fileno()), "other": reader})
    assert after.current["main"].header.ended_requests == 9
    assert list(after.current) == ["main"]
    assert "pool other" in caplog.text
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.close(reader)
    assert not os.get_inheritable(after.current["main"].fileno())
    after.close()


def test_description_of_a_pool(boards: Boards) -> None:
    """What there may be, of all its addresses."""
    described = PoolConfig(
        bind=("@a", "@b"), command=("/x",), workers=3, ping_path="/p"
    )
    board = boards.provide(described)
    boards.describe([described], {"main": 5})
    header = board.header
    assert (header.most, header.manager, header.ping_path) == (10, "static", "/p")

"""A receiver in a process without free descriptors loses no client."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from fcgi_app.fdpass import Receiver, Sender, send
from fcgi_app.fdpass.intake import Intake

from .handovers import TIMEOUT, connect_to, no_descriptors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "receiver.sock"


@pytest.fixture
def receiver(path: Path) -> Iterator[Receiver]:
    with Receiver(path) as receiver:
        yield receiver


def test_accept_without_descriptors_tries_again(
    receiver: Receiver, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The client stays in the backlog until there is a descriptor; one line tells."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Sender(path).send(theirs, b"patient")
        with no_descriptors(), pytest.raises(TimeoutError):
            receiver.accept(0.2)
        handover = receiver.accept(TIMEOUT)
        assert handover is not None
        assert handover.data == b"patient"
        handover.detach().close()
    (record,) = caplog.records
    assert "no sender is taken: [Errno 24] Too many open files" in record.getMessage()


def test_accept_without_descriptors_backs_off(
    receiver: Receiver, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause doubles: in 0.6 s there are four attempts, not hundreds."""
    attempts = []
    accept = Intake._accept

    def counted(intake: Intake) -> bool:
        attempts.append(intake)
        return accept(intake)

    monkeypatch.setattr(Intake, "_accept", counted)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Sender(path).send(theirs)
        with no_descriptors(), pytest.raises(TimeoutError):
            receiver.accept(0.6)
        assert 2 <= len(attempts) <= 4
        handover = receiver.accept(TIMEOUT)
        assert handover is not None
        handover.detach().close()


def test_last_descriptor_loses_no_client(receiver: Receiver, path: Path) -> None:
    """One free descriptor is enough for the connection and the client in it."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Sender(path).send(theirs, b"last")
        with no_descriptors(but=1):
            handover = receiver.accept(TIMEOUT)
        assert handover is not None
        assert handover.data == b"last"
        handover.detach().close()


def test_client_waits_when_its_place_was_taken(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the reserve nothing is read, so that the kernel drops no client."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Receiver(path) as receiver, connect_to(path) as connection:
        with pytest.raises(TimeoutError):
            receiver.accept(0)
        send(connection, theirs, b"kept")
        receiver._intake._give_up_reserve()  # as if another thread had opened a file
        with no_descriptors(), pytest.raises(TimeoutError):
            receiver.accept(0.2)
        handover = receiver.accept(TIMEOUT)
        assert handover is not None
        assert handover.data == b"kept"
        handover.detach().close()


def test_silent_senders_make_room(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Out of descriptors, the sender that is silent longest has to go."""
    monkeypatch.setattr("fcgi_app.fdpass.intake._GRACE", 0.0)
    ours, theirs = socket.socketpair()
    with ExitStack() as stack:
        stack.enter_context(ours)
        stack.enter_context(theirs)
        receiver = stack.enter_context(Receiver(path))
        silent = stack.enter_context(connect_to(path))
        with pytest.raises(TimeoutError):
            receiver.accept(0)
        Sender(path).send(theirs, b"served")
        with no_descriptors():
            handover = receiver.accept(TIMEOUT)
        assert handover is not None
        assert handover.data == b"served"
        handover.detach().close()
        assert silent.recv(1) == b""
    assert "no descriptor, and its place is needed; closed" in caplog.text


def test_stop_without_descriptors_waits_for_them(
    receiver: Receiver, path: Path
) -> None:
    """A stop that finds no free descriptor serves the backlog when there are some."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Sender(path).send(theirs, b"patient")
        receiver.stop()
        with no_descriptors(), pytest.raises(TimeoutError):
            receiver.accept(0.1)
        handover = receiver.accept(TIMEOUT)
        assert handover is not None
        handover.detach().close()
        assert receiver.accept(TIMEOUT) is None

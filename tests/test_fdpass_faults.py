"""What is no client, senders that misbehave, a process without free descriptors.

Each fault is a line in the log, leaks nothing, and costs nobody else a client.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.fdpass import DATA_MAX_BYTES, Receiver, Sender, send
from fcgi_app.fdpass.ancillary import build_rights

from .handovers import (
    TIMEOUT,
    TLS_ALERT,
    connect_to,
    open_descriptors,
    reset,
    send_raw,
    tcp_connection,
    wait_for_input,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "receiver.sock"


@pytest.fixture
def receiver(path: Path) -> Iterator[Receiver]:
    with Receiver(path, sender_timeout=0.2) as receiver:
        yield receiver


def serve_next(receiver: Receiver, path: Path) -> None:
    """A good client is handed over now and is the next that is delivered."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Sender(path).send(theirs, b"good")
        handover = receiver.accept(TIMEOUT)
        assert handover is not None
        assert handover.data == b"good"
        handover.detach().close()


def send_one(path: Path, sock: socket.socket) -> None:
    with sock:
        send_raw(path, b"\0", sock.fileno())


# ---- what is sent -------------------------------------------------------------


def send_nothing(path: Path) -> None:
    connect_to(path).close()


def send_no_descriptor(path: Path) -> None:
    send_raw(path, b"\0")


def send_two(path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_raw(path, b"\0", ours.fileno(), theirs.fileno())


def send_twenty(path: Path) -> None:
    send_raw(path, b"\0", *[0] * 20)


def send_pipe(path: Path) -> None:
    read, write = os.pipe()
    send_raw(path, b"\0", read)
    os.close(read)
    os.close(write)


def send_file(path: Path) -> None:
    with open(__file__, "rb") as file:
        send_raw(path, b"\0", file.fileno())


def send_directory(path: Path) -> None:
    directory = os.open("/", os.O_RDONLY)
    send_raw(path, b"\0", directory)
    os.close(directory)


def send_device(path: Path) -> None:
    with open(os.devnull, "rb") as device:
        send_raw(path, b"\0", device.fileno())


def send_path_descriptor(path: Path) -> None:
    opened = os.open(__file__, os.O_PATH)
    send_raw(path, b"\0", opened)
    os.close(opened)


def send_epoll(path: Path) -> None:
    with select.epoll() as poller:
        send_raw(path, b"\0", poller.fileno())


def send_listener(path: Path) -> None:
    send_one(path, socket.create_server(("127.0.0.1", 0)))


def send_datagram(path: Path) -> None:
    send_one(path, socket.socket(socket.AF_INET, socket.SOCK_DGRAM))


def send_unconnected(path: Path) -> None:
    send_one(path, socket.socket())


def send_unconnected_unix(path: Path) -> None:
    send_one(path, socket.socket(socket.AF_UNIX))


def send_tls_client(path: Path) -> None:
    with tcp_connection() as (client, server):
        client.sendall(TLS_ALERT)
        wait_for_input(server)
        send_raw(path, b"\0", server.fileno())


def send_reset_client(path: Path) -> None:
    with tcp_connection() as (client, server):
        reset(client)
        wait_for_input(server)
        send_raw(path, b"\0", server.fileno())


def send_reset_client_that_was_noticed(path: Path) -> None:
    with tcp_connection() as (client, server):
        reset(client)
        wait_for_input(server)
        with pytest.raises(ConnectionResetError):
            server.recv(1)
        send_raw(path, b"\0", server.fileno())


def send_reset_unix_client(path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"x")
        ours.close()  # with something unread
        send_raw(path, b"\0", theirs.fileno())


def send_too_much(path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        send_raw(path, bytes(DATA_MAX_BYTES + 1), theirs.fileno())


def send_too_much_before(path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, connect_to(path) as connection:
        connection.sendall(bytes(DATA_MAX_BYTES))
        connection.sendmsg([b"\0"], build_rights([theirs.fileno()]))


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (send_nothing, "the connection ended without a descriptor"),
    (send_no_descriptor, "the connection ended without a descriptor"),
    (send_two, "2 descriptors in one message, one is expected"),
    (send_twenty, "control data was truncated (MSG_CTRUNC) after 16 descriptors"),
    (send_pipe, "a pipe, not a socket"),
    (send_file, "a regular file, not a socket"),
    (send_directory, "a directory, not a socket"),
    (send_device, "a character device, not a socket"),
    (send_path_descriptor, "a regular file, not a socket"),
    (send_epoll, "not a usable socket: "),
    (send_listener, "a listening socket"),
    (send_datagram, "a SOCK_DGRAM socket, not a stream"),
    (
        send_unconnected,
        "a socket that is not connected, as httpd hands over for HTTP/2",
    ),
    (send_unconnected_unix, "a socket that is not connected"),
    (send_tls_client, "the client speaks TLS"),
    (send_reset_client, "the client has gone"),
    (send_reset_client_that_was_noticed, "the client has gone"),
    (send_reset_unix_client, "the client has gone"),
    (send_too_much, "more than 16384 bytes of payload"),
    (send_too_much_before, "more than 16384 bytes of payload"),
]


@pytest.mark.parametrize(("fault", "cause"), FAULTS)
def test_fault_is_logged_and_the_next_is_served(
    receiver: Receiver,
    path: Path,
    fault: Callable[[Path], None],
    cause: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is closed with one line that names the sender, and the next one comes."""
    before = open_descriptors()
    fault(path)
    serve_next(receiver, path)
    (record,) = caplog.records
    assert record.name == "fcgi_app"
    said = record.getMessage()
    sender = f"fdpass unix:{path}: from pid {os.getpid()} of user {os.geteuid()}: "
    assert said.startswith(sender + cause)
    assert said.endswith("; closed")
    assert open_descriptors() == before


def test_control_message_of_another_type(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A message with credentials beside the descriptor is refused; it is closed."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(8)
        with Receiver(os.dup(listener.fileno())) as receiver:
            before = open_descriptors()
            # What accepted sockets inherit; the receiver had switched it off.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            send_two(path)
            send_one(path, socket.socket())
            with pytest.raises(TimeoutError):
                receiver.accept(0)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 0)
            serve_next(receiver, path)
            assert open_descriptors() == before
    kind = f"level {socket.SOL_SOCKET:d}, type {socket.SCM_CREDENTIALS:d}"
    assert caplog.text.count(f"a control message of {kind}, not SCM_RIGHTS") == 2


def test_passed_listener_brings_no_credentials(path: Path) -> None:
    """Options of a listening socket that someone else made do no harm."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen(8)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        with Receiver(os.dup(listener.fileno())) as receiver:
            serve_next(receiver, path)


def test_client_that_has_ended_its_side_is_served(
    receiver: Receiver, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A half-closed client reads on; one that has gone looks the same; both are told."""
    caplog.set_level("INFO", "fcgi_app")
    with tcp_connection() as (client, server):
        client.shutdown(socket.SHUT_WR)
        wait_for_input(server)
        Sender(path).send(server)
        server.close()
        handover = receiver.accept(TIMEOUT)
        assert handover is not None
        with handover:
            handover.write(b"all the same")
        assert client.recv(100) == b"all the same"
    assert "the client has closed its side" in caplog.text


def test_client_that_has_closed_is_told(
    receiver: Receiver, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One that has gone without a reset: a line in the log, and an error to write."""
    caplog.set_level("INFO", "fcgi_app")
    with tcp_connection() as (client, server):
        client.close()
        wait_for_input(server)
        Sender(path).send(server)
        server.close()
        handover = receiver.accept(TIMEOUT)
        assert handover is not None
        with handover, pytest.raises(ConnectionError):
            handover.write(bytes(64 << 20))  # more than any socket's buffer
    assert "the client has closed its side" in caplog.text
    serve_next(receiver, path)


@pytest.mark.parametrize(
    "head",
    [
        b"\x16\x03",
        b"\x15\x03\x03\x00\x00",
        b"\x18\x03\x03\x00\x02",
        b"\x16\x03\x05\x00\x02",
        b"\x17\x02\x03\x00\x02",
        b"GET /",
    ],
)
def test_other_input_is_no_tls(receiver: Receiver, path: Path, head: bytes) -> None:
    """Bytes that are no whole header of a TLS record leave the client as it is."""
    with tcp_connection() as (client, server):
        client.sendall(head)
        wait_for_input(server)
        Sender(path).send(server)
        handover = receiver.accept(TIMEOUT)
        assert handover is not None
        assert handover.socket.recv(100) == head
        handover.detach().close()


# ---- who sends ----------------------------------------------------------------


def test_other_user_is_refused(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A sender whose user id is not allowed is closed before anything is read."""
    us = os.geteuid()
    ours, theirs = socket.socketpair()
    with ours, theirs, Receiver(path, allow_uids=[us + 1]) as receiver:
        Sender(path).send(theirs)
        with pytest.raises(TimeoutError):
            receiver.accept(0)
        theirs.close()
        assert ours.recv(1) == b""
    assert f"of user {us}: this user may not hand over; closed" in caplog.text


def test_allowed_user_is_served(path: Path) -> None:
    """An allowed one passes."""
    with Receiver(path, allow_uids={os.geteuid()}) as receiver:
        serve_next(receiver, path)


def test_silent_sender_is_closed(
    receiver: Receiver, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A sender that sends nothing is closed after its time, and disturbs nobody."""
    with connect_to(path) as silent:
        serve_next(receiver, path)
        with pytest.raises(TimeoutError):
            receiver.accept(0.3)
        assert silent.recv(1) == b""
        serve_next(receiver, path)
    assert "no descriptor within 0.2 s; closed" in caplog.text


def test_trickling_sender_is_closed(
    receiver: Receiver, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes now and then do not lengthen the time."""
    with connect_to(path) as trickling:
        while not caplog.records:
            trickling.send(b"x")
            with pytest.raises(TimeoutError):
                receiver.accept(0.01)
        with pytest.raises(OSError, match=r"[Pp]ipe|reset"):
            trickling.send(b"x")
    assert "no descriptor within 0.2 s; closed" in caplog.text
    serve_next(receiver, path)


def test_sender_that_is_reset(
    receiver: Receiver,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An error of the sender's connection is its own."""

    def fail(_: socket.socket) -> None:
        raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))

    with monkeypatch.context() as patch, connect_to(path):
        patch.setattr("fcgi_app.fdpass.intake.receive_message", fail)
        with pytest.raises(TimeoutError):
            receiver.accept(0)
    assert "no descriptor: Connection reset by peer; closed" in caplog.text
    serve_next(receiver, path)


def test_no_limit_for_senders(path: Path) -> None:
    """sender_timeout=0: one may take its time."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Receiver(path, sender_timeout=0) as receiver:
        with connect_to(path) as slow:
            with pytest.raises(TimeoutError):
                receiver.accept(0.01)
            send(slow, theirs, b"late")
            handover = receiver.accept(TIMEOUT)
        assert handover is not None
        assert handover.data == b"late"
        handover.detach().close()


def test_slow_sender_keeps_its_turn(path: Path) -> None:
    """Who has connected first is delivered first, if all of it is there."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Receiver(path) as receiver, connect_to(path) as slow:
        with pytest.raises(TimeoutError):
            receiver.accept(0)  # it has been accepted
        Sender(path).send(theirs, b"second")
        slow.sendmsg([b"first"], build_rights([theirs.fileno()]))
        for expected in (b"first", b"second"):
            handover = receiver.accept(TIMEOUT)
            assert handover is not None
            assert handover.data == expected
            handover.detach().close()


# ---- many of all kinds --------------------------------------------------------


@given(st.lists(st.sampled_from([None, *[fault for fault, _ in FAULTS]]), max_size=12))
def test_any_sequence_delivers_the_good_ones(
    kinds: list[Callable[[Path], None] | None],
) -> None:
    """Whatever comes between, each good client arrives, in order; nothing leaks."""
    name = f"@fcgi_app-faults-{os.getpid()}"
    ours, theirs = socket.socketpair()
    good = []
    with ours, theirs, Receiver(name) as receiver:
        before = open_descriptors()
        for number, fault in enumerate(kinds):
            if fault is not None:
                _send_to_abstract(fault, name)
            else:
                good.append(b"%d" % number)
                Sender(name).send(theirs, good[-1])
        found = []
        for _ in good:
            handover = receiver.accept(TIMEOUT)
            assert handover is not None
            found.append(handover.data)
            handover.detach().close()
        assert found == good
        with pytest.raises(TimeoutError):
            receiver.accept(0)
        assert open_descriptors() == before


def _send_to_abstract(fault: Callable[[Path], None], name: str) -> None:
    fault(Path("\0" + name[1:]))


@pytest.mark.slow
def test_100_000_deliveries_leave_nothing(path: Path) -> None:
    """100,000 handovers and 2,000 faults; the same descriptors are open all along."""
    quick = [send_no_descriptor, send_two, send_twenty, send_pipe, send_unconnected]
    sender = Sender(path)
    ours, theirs = socket.socketpair()
    delivered = 0
    with ours, theirs, Receiver(path) as receiver:
        before = open_descriptors()
        for turn in range(1000):
            for _ in range(100):
                sender.send(theirs)
            for fault in (quick[turn % 5], quick[(turn + 2) % 5]):
                fault(path)
            for _ in range(100):
                handover = receiver.accept(TIMEOUT)
                assert handover is not None
                handover.socket.close()
                delivered += 1
            if turn % 100 == 99:
                with pytest.raises(TimeoutError):
                    receiver.accept(0)
                assert open_descriptors() == before
    assert delivered == 100_000

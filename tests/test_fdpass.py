"""Receiving, sending, and what a receiver does at its start and its end."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fcgi_app.fdpass
from fcgi_app.errors import ConfigError
from fcgi_app.fdpass import DATA_MAX_BYTES, Peer, Receiver, Sender, send
from fcgi_app.fdpass.ancillary import build_rights

from .handovers import TIMEOUT, connect_to, read_all, taken, tcp_connection

US = Peer(os.getpid(), os.geteuid(), os.getegid())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "receiver.sock"


@pytest.fixture
def receiver(path: Path) -> Iterator[Receiver]:
    with Receiver(path) as receiver:
        yield receiver


# ---- one delivery -------------------------------------------------------------


def test_handover_of_httpd(receiver: Receiver, path: Path) -> None:
    """A client arrives with payload, sender and address, blocking, close-on-exec."""
    with tcp_connection() as (client, server):
        Sender(path).send(server)
        server.close()
        with taken(receiver) as handover:
            assert handover.data == b"\0"
            assert handover.peer == US
            assert handover.address == client.getsockname()
            assert handover.socket.getblocking()
            assert os.get_blocking(handover.fileno())
            assert not handover.socket.get_inheritable()
            assert not handover.closed
            client.close()  # else the end would be waited for


def test_handover_of_a_unix_client(receiver: Receiver, path: Path) -> None:
    """A client on a Unix socket has no address."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Sender(path).send(theirs)
        with taken(receiver) as handover:
            assert handover.address is None
            theirs.close()
            handover.write(b"body")
            ours.shutdown(socket.SHUT_WR)
            handover.close()
            assert read_all(ours) == b"body"


@given(st.binary(min_size=1, max_size=DATA_MAX_BYTES))
def test_payload_arrives_whole(data: bytes) -> None:
    """Up to 16,384 bytes go with a client, exactly as they are."""
    ours, theirs = socket.socketpair()
    name = f"@fcgi_app-test-{os.getpid()}"
    with ours, theirs, Receiver(name) as receiver:
        Sender(name).send(theirs, data)
        with taken(receiver).detach():
            pass
        Sender(name).send(theirs, data)
        handover = taken(receiver)
        assert handover.data == data
        handover.detach().close()


@pytest.mark.slow
def test_payload_of_the_greatest_size() -> None:
    """16,384 bytes are the most that send takes, and they arrive in one piece."""
    ours, theirs = socket.socketpair()
    name = f"@fcgi_app-test-{os.getpid()}"
    with ours, theirs, Receiver(name) as receiver:
        for _ in range(300):
            Sender(name).send(theirs, bytes(DATA_MAX_BYTES))
            handover = taken(receiver)
            assert len(handover.data) == DATA_MAX_BYTES
            handover.detach().close()


@pytest.mark.parametrize("data", [b"", bytes(DATA_MAX_BYTES + 1)])
def test_send_refuses_other_payloads(data: bytes) -> None:
    """Without payload no descriptor would be sent; a longer one would be refused."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ConfigError, match=f"data: .*{len(data)} bytes"):
        send(ours, theirs, data)


def test_payload_before_the_descriptor(receiver: Receiver, path: Path) -> None:
    """Bytes that come first belong to the handover, too."""
    ours, theirs = socket.socketpair()
    with ours, theirs, connect_to(path) as connection:
        connection.sendall(b"first ")
        with pytest.raises(TimeoutError, match=r"no client came within 0 s"):
            receiver.accept(0)
        connection.sendmsg([b"second"], build_rights([theirs.fileno()]))
        handover = taken(receiver)
        assert handover.data == b"first second"
        handover.detach().close()


def test_payload_through_a_small_buffer(receiver: Receiver, path: Path) -> None:
    """A sender whose socket takes little at a time still gets everything through."""
    ours, theirs = socket.socketpair()
    data = os.urandom(DATA_MAX_BYTES)
    with ours, theirs, connect_to(path) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        sending = threading.Thread(target=send, args=(connection, theirs, data))
        sending.start()
        handover = taken(receiver)
        sending.join()
        assert handover.data == data
        handover.detach().close()


def test_sent_by_number(receiver: Receiver, path: Path) -> None:
    """A descriptor's number does as well as a socket; it stays the caller's."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Sender(f"unix:{path}", timeout=TIMEOUT) as sender:
        sender.send(theirs.fileno())
        taken(receiver).detach().close()
        assert theirs.getsockname() == ""


def test_sent_by_a_program_started_for_the_client(
    receiver: Receiver, path: Path
) -> None:
    """An inetd-style program hands its client, descriptor 1, to a long-running one."""
    code = "import sys; from fcgi_app.fdpass import Sender; Sender(sys.argv[1]).send(1)"
    with tcp_connection() as (client, server):
        server.setblocking(True)
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(path)],
            stdout=server.fileno(),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        server.close()
        assert child.wait(TIMEOUT) == 0
        with taken(receiver) as handover:
            assert handover.peer == (child.pid, US.uid, US.gid)
            assert handover.address == client.getsockname()
            handover.write(b"taken over")
            client.shutdown(socket.SHUT_WR)
        assert read_all(client) == b"taken over"


def test_sender_without_receiver(path: Path) -> None:
    """Nobody there: an error that names the path, and no descriptor is lost."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(FileNotFoundError, match=r"receiver\.sock"):
        Sender(path).send(theirs)


# ---- several senders ----------------------------------------------------------


def test_many_senders_at_once(receiver: Receiver, path: Path) -> None:
    """Eight threads hand over at the same time; each client arrives once."""

    def hand_over(first: int) -> None:
        sender = Sender(path, timeout=TIMEOUT)
        for number in range(first, first + 50):
            sender.send(theirs, str(number).encode())

    ours, theirs = socket.socketpair()
    threads = [threading.Thread(target=hand_over, args=(n * 50,)) for n in range(8)]
    with ours, theirs:
        for thread in threads:
            thread.start()
        found = []
        for _ in range(400):
            handover = taken(receiver)
            found.append(int(handover.data))
            handover.detach().close()
        for thread in threads:
            thread.join(TIMEOUT)
    assert sorted(found) == list(range(400))


def test_a_waiting_sender_delays_nobody(receiver: Receiver, path: Path) -> None:
    """One that has connected and sends later is served later, others meanwhile."""
    ours, theirs = socket.socketpair()
    with ours, theirs, connect_to(path) as slow:
        Sender(path).send(theirs, b"quick")
        handover = taken(receiver)
        assert handover.data == b"quick"
        handover.detach().close()
        send(slow, theirs, b"slow")
        handover = taken(receiver)
        assert handover.data == b"slow"
        handover.detach().close()


def test_max_queued_leaves_the_others_in_the_backlog(path: Path) -> None:
    """A busy worker takes one and leaves the rest to another one of the pool."""
    ours, theirs = socket.socketpair()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(os.fspath(path))
    listener.listen(16)
    again = os.dup(listener.fileno())
    with (
        ours,
        theirs,
        Receiver(listener.detach(), max_queued=1) as busy,
        Receiver(again, max_queued=1) as free,
    ):
        for data in (b"1", b"2", b"3"):
            Sender(path).send(theirs, data)
        first = taken(busy)
        second, third = taken(free), taken(free)
        assert [h.data for h in (first, second, third)] == [b"1", b"2", b"3"]
        for handover in (first, second, third):
            handover.detach().close()
        with pytest.raises(TimeoutError):
            busy.accept(0)
    assert path.exists()  # whoever made it removes it


# ---- waiting ------------------------------------------------------------------


def test_accept_times_out(receiver: Receiver) -> None:
    """Nothing came: TimeoutError, which says how long."""
    with pytest.raises(TimeoutError, match=r"no client came within 0\.01 s"):
        receiver.accept(0.01)


def test_fileno_tells_of_a_client(receiver: Receiver, path: Path) -> None:
    """The descriptor of a receiver can be waited for together with others."""
    poller = select.poll()
    poller.register(receiver, select.POLLIN)
    assert poller.poll(0) == []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Sender(path).send(theirs)
        assert poller.poll(TIMEOUT * 1000)
        handover = receiver.accept(0)
        assert handover is not None
        handover.detach().close()
    assert poller.poll(0) == []


def test_default_timeout_of_sockets_does_not_count(path: Path) -> None:
    """With socket.setdefaulttimeout clients are blocking all the same."""
    ours, theirs = socket.socketpair()
    socket.setdefaulttimeout(0.5)
    try:
        with ours, theirs, Receiver(path) as receiver, connect_to(path) as connection:
            with pytest.raises(TimeoutError, match="within 0 s"):
                receiver.accept(0)
            send(connection, theirs)
            handover = taken(receiver)
            assert handover.socket.gettimeout() is None
            handover.detach().close()
    finally:
        socket.setdefaulttimeout(None)


# ---- the end ------------------------------------------------------------------


def test_iteration_ends_after_stop(receiver: Receiver, path: Path) -> None:
    """Clients that had connected are delivered, then the loop ends."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for data in (b"1", b"2", b"3"):
            Sender(path).send(theirs, data)
        found = []
        for handover in receiver:
            receiver.stop()
            found.append(handover.data)
            handover.detach().close()
        assert found == [b"1", b"2", b"3"]
        assert receiver.accept(0) is None
        assert not path.exists()


def test_stop_takes_the_backlog(receiver: Receiver, path: Path) -> None:
    """Who connected before the stop is served, although nothing was taken yet."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Sender(path).send(theirs)
        receiver.stop()
        taken(receiver).detach().close()
        assert receiver.accept() is None


def test_stop_of_an_abstract_socket_takes_the_backlog() -> None:
    """There is no file to remove first; who has connected is served all the same."""
    name = f"@fcgi_app-stop-{os.getpid()}"
    ours, theirs = socket.socketpair()
    with ours, theirs, Receiver(name) as receiver:
        Sender(name).send(theirs)
        receiver.stop()
        taken(receiver).detach().close()
        assert receiver.accept() is None


def test_close_with_a_silent_sender(path: Path) -> None:
    """A sender that has not sent yet is closed with the rest."""
    with Receiver(path) as receiver, connect_to(path) as silent:
        with pytest.raises(TimeoutError):
            receiver.accept(0)
        receiver.close()
        assert silent.recv(1) == b""


def test_socket_file_that_cannot_be_removed(
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is a line in the log, and the end is an end."""

    def refuse(_: socket.socket) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", "receiver.sock")

    monkeypatch.setattr("fcgi_app.fdpass.intake.remove_socket_file", refuse)
    receiver.stop()
    assert receiver.accept() is None
    assert "not removed: [Errno 13] Permission denied" in caplog.text


def test_stop_waits_for_a_sender(receiver: Receiver, path: Path) -> None:
    """A sender that has connected and not sent yet is waited for."""
    ours, theirs = socket.socketpair()
    with ours, theirs, connect_to(path) as connection:
        receiver.stop()
        with pytest.raises(TimeoutError):
            receiver.accept(0)
        send(connection, theirs)
        taken(receiver).detach().close()
        assert receiver.accept() is None


def test_stop_without_clients_is_the_end_at_once(receiver: Receiver) -> None:
    """Nobody is waited for: None, and no TimeoutError."""
    receiver.stop()
    assert receiver.accept(0) is None


def test_stop_from_another_thread(receiver: Receiver) -> None:
    """A waiting accept returns None at once."""
    timer = threading.Timer(0.05, receiver.stop)
    timer.start()
    assert receiver.accept() is None
    timer.join()


def test_stop_in_a_signal_handler(receiver: Receiver) -> None:
    """stop is safe in the handler of a signal that arrives while accept waits."""
    before = signal.signal(signal.SIGALRM, lambda *_: receiver.stop())
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert list(receiver) == []
    finally:
        signal.signal(signal.SIGALRM, before)


def test_close_names_what_was_not_taken(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Queued clients are closed and counted in the log."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        with Receiver(path) as receiver:
            for _ in range(3):
                Sender(path).send(theirs)
            taken(receiver).detach().close()
            theirs.close()
        assert receiver.accept() is None
        assert ours.recv(1) == b""
    assert "2 clients closed that nobody has taken" in caplog.text
    receiver.close()
    receiver.stop()
    assert not path.exists()


def test_close_in_a_forked_child(path: Path) -> None:
    """A child closes copies; its parent goes on, its file stays."""
    code = (
        "import os, socket, sys\n"
        "from fcgi_app.fdpass import Receiver, Sender\n"
        "receiver = Receiver(sys.argv[1])\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    receiver.close()\n"
        "    os._exit(os.path.exists(sys.argv[1]))\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1\n"
        "ours, theirs = socket.socketpair()\n"
        "Sender(sys.argv[1]).send(theirs)\n"
        "print(receiver.accept(30).data)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "b'\\x00'\n", done.stderr


# ---- the module ---------------------------------------------------------------


def test_unknown_names_are_unknown() -> None:
    """The module's lazy loading hides no misspelling."""
    with pytest.raises(AttributeError, match="Reciever"):
        fcgi_app.fdpass.Reciever  # noqa: B018


def test_import_loads_no_asyncio() -> None:
    """Who does not ask for the asyncio receiver does not pay for it."""
    code = "import sys, fcgi_app.fdpass; print('asyncio' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "False\n"


# ---- where it sends to --------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:80", "fd:3", "systemd", ""])
def test_sender_wants_a_unix_socket(address: str) -> None:
    """Descriptors travel over Unix sockets alone."""
    with pytest.raises(ConfigError, match="address"):
        Sender(address)


def test_sender_checks_its_timeout(path: Path) -> None:
    """0 seconds would never be enough."""
    with pytest.raises(ConfigError, match="timeout"):
        Sender(path, timeout=0)

"""fcgi_app.fdpass behind a real Apache: what a browser gets, and what Apache is spared.

The facts about Apache alone are in test_e2e_fdpass_apache.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import resource
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from fcgi_app.fdpass import AsyncReceiver, Receiver, Sender

from .servers import ask, wait_until
from .servers.fdpass import HTTP2, SECURE, FdpassSite, read_head, read_to_end
from .servers.http import Answer, parse_answer
from .servers.process import Foreground, require, web_user
from .servers.programs import EXAMPLES, program_environment

pytestmark = pytest.mark.e2e

MPMS = {"event": (), "worker": ("-DWORKER",), "prefork": ("-DPREFORK",)}
STREAMS = 500
PER_CLIENT_KIB = 3.0
"""What the clock promises for an idle client."""


@pytest.fixture(scope="module", params=MPMS)
def mpm_site(request: pytest.FixtureRequest) -> Iterator[FdpassSite]:
    with FdpassSite(options=MPMS[request.param]) as site:
        yield site
        print(site.log())


@pytest.fixture(scope="module")
def site() -> Iterator[FdpassSite]:
    with FdpassSite(SECURE + HTTP2) as site:
        yield site
        print(site.log())


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """What the receiver logs."""
    caplog.set_level(logging.WARNING, logger="fcgi_app")
    return caplog


@contextmanager
def curl(url: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A plain curl under way; its output holds the head, too."""
    command = [require("curl"), "-sSi", "-m", "20", *options, url]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[bytes]) -> Answer:
    """Wait for curl, which must have seen a clean end; give the answer."""
    output, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, b"")
    return parse_answer(output)


def push(site: FdpassSite) -> str:
    return f"http://127.0.0.1:{site.port}/push"


# ---- the receiver -------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_curl_sees_every_byte(mpm_site: FdpassSite, size: int) -> None:
    """The body is what was written, and the connection ends without an error."""
    body = os.urandom(1000) * (size // 1000 + 1)
    body = body[:size]
    with Receiver(mpm_site.path) as receiver, curl(push(mpm_site)) as process:

        def serve() -> None:
            handover = receiver.accept(20)
            assert handover is not None
            with handover:
                handover.write(body)

        thread = threading.Thread(target=serve)
        thread.start()
        answer = finish(process)
        thread.join()
    assert (answer.status, answer.body) == (200, body)


def test_handover_tells_who_it_is_from(mpm_site: FdpassSite) -> None:
    """The peer is a process of Apache, the address the browser's."""
    with Receiver(mpm_site.path) as receiver, mpm_site.open() as client:
        handover = receiver.accept(20)
        assert handover is not None
        with handover:
            client_address = client.getsockname()
            assert handover.address == client_address
            assert handover.data == b"\0"
            assert handover.peer.uid == pwd.getpwnam(web_user()).pw_uid
            status = Path(f"/proc/{handover.peer.pid}/status").read_text()
            assert f"\nPPid:\t{mpm_site.server.pid}\n" in status
            assert handover.socket.getblocking()
            assert not os.get_inheritable(handover.fileno())
            client.close()


def test_unread_upload_does_not_harm_the_answer(mpm_site: FdpassSite) -> None:
    """An upload that nobody reads: the client still gets the answer, whole."""
    upload = "@" + __file__
    options = ["-H", "Expect:", "-H", "Transfer-Encoding: chunked"]
    for number in range(5):
        with (
            Receiver(mpm_site.path) as receiver,
            curl(push(mpm_site), *options, "--data-binary", upload) as process,
        ):
            handover = receiver.accept(20)
            assert handover is not None
            with handover:
                handover.write(b"answer %d" % number)
            assert finish(process).body == b"answer %d" % number


def test_long_upload_does_not_harm_the_answer(mpm_site: FdpassSite) -> None:
    """8 MB that are on their way while the receiver answers and closes."""
    head = b"POST /push HTTP/1.1\r\nHost: x\r\nContent-Length: 8000000\r\n\r\n"
    with (
        Receiver(mpm_site.path) as receiver,
        socket.create_connection(("127.0.0.1", mpm_site.port), 20) as client,
    ):
        client.sendall(head)

        def upload() -> None:
            client.sendall(b"x" * 8_000_000)
            client.shutdown(socket.SHUT_WR)

        thread = threading.Thread(target=upload)
        thread.start()
        handover = receiver.accept(20)
        assert handover is not None
        with handover:
            handover.write(b"early")
        thread.join(20)
        assert not thread.is_alive()
        assert read_to_end(client).endswith(b"\r\n\r\nearly")


def test_receiver_reads_the_body_that_comes_later(site: FdpassSite) -> None:
    """A conversation in both directions, as a terminal or a game has it."""
    with Receiver(site.path) as receiver, site.open() as client:
        handover = receiver.accept(20)
        assert handover is not None
        with handover:
            read_head(client)
            client.sendall(b"ping")
            assert handover.socket.recv(100) == b"ping"
            handover.write(b"pong")
            assert client.recv(100) == b"pong"
            client.shutdown(socket.SHUT_WR)


def test_many_wait_while_the_receiver_is_busy(mpm_site: FdpassSite) -> None:
    """Sixty clients that nobody has accepted yet hold no thread of Apache."""
    with Receiver(mpm_site.path) as receiver, ExitStack() as stack:
        clients = [stack.enter_context(mpm_site.open()) for _ in range(60)]
        for client in clients:
            read_head(client)
        mpm_site.wait_until_idle()
        for _ in clients:
            handover = receiver.accept(20)
            assert handover is not None
            handover.linger_timeout = 0  # this thread is the client, too
            with handover:
                handover.write(repr(handover.address).encode())
        for client in clients:
            assert read_to_end(client).decode() == repr(client.getsockname())


def test_receiver_may_be_restarted(site: FdpassSite) -> None:
    """Without a receiver there is a 500; the next one serves again."""
    for _ in range(2):
        with Receiver(site.path) as receiver, curl(push(site)) as process:
            handover = receiver.accept(20)
            assert handover is not None
            with handover:
                handover.write(b"here")
            assert finish(process).body == b"here"
        assert ask(site.port, "/push").status == 500


def test_socket_file_of_a_dead_receiver_is_replaced(site: FdpassSite) -> None:
    """Nothing has to be tidied up after a crash."""
    left = socket.socket(socket.AF_UNIX)
    left.bind(site.path)
    left.close()
    assert ask(site.port, "/push").status == 500
    with Receiver(site.path) as receiver, site.open() as client:
        handover = receiver.accept(20)
        assert handover is not None
        client.close()
        handover.close()


def test_other_users_are_refused(
    site: FdpassSite, log: pytest.LogCaptureFixture
) -> None:
    """Apache's account is not on the list: an empty 200, and a line in the log."""
    uid = pwd.getpwnam(web_user()).pw_uid
    with Receiver(site.path, allow_uids=[uid + 1]) as receiver, site.open() as client:
        with pytest.raises(TimeoutError):
            receiver.accept(0.2)
        assert parse_answer(read_to_end(client)).body == b""
    assert f"of user {uid}: this user may not hand over" in log.text


def test_sender_does_as_apache_does(site: FdpassSite) -> None:
    """A client of Apache's goes on to a third process, as often as one likes."""
    other = str(site.run / "run" / "other.sock")
    with (
        Receiver(site.path) as receiver,
        Receiver(other) as next_receiver,
        curl(push(site)) as process,
    ):
        first = receiver.accept(20)
        assert first is not None
        first.write(b"first, ")
        with first.detach() as client:
            Sender(other).send(client, b"note")
        second = next_receiver.accept(20)
        assert second is not None
        assert second.data == b"note"
        with second:
            second.write(b"second")
        assert finish(process).body == b"first, second"


def test_async_receiver(mpm_site: FdpassSite) -> None:
    """``async for`` serves clients that talk at the same time."""

    async def serve(count: int) -> None:
        async with AsyncReceiver(mpm_site.path) as receiver:
            clients = [mpm_site.open() for _ in range(count)]
            seen = []
            async for handover in receiver:
                seen.append(handover)
                if len(seen) == count:
                    break
            for number, handover in enumerate(seen):
                handover.linger_timeout = 0
                with handover:
                    handover.write(b"async %d" % number)
            bodies = []
            for client in clients:
                with client:
                    bodies.append(parse_answer(read_to_end(client)).body)
            assert sorted(bodies) == [b"async %d" % n for n in range(count)]

    asyncio.run(asyncio.wait_for(serve(10), 30))


# ---- what cannot work ---------------------------------------------------------------


def assert_serves(site: FdpassSite, receiver: Receiver) -> None:
    """The next client is served."""
    with curl(push(site)) as process:
        handover = receiver.accept(20)
        assert handover is not None
        with handover:
            handover.write(b"next")
        assert finish(process).body == b"next"


def test_tls_is_recognised(site: FdpassSite, log: pytest.LogCaptureFixture) -> None:
    """At the latest when something is written; the log tells the cause."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with Receiver(site.path) as receiver:
        raw = socket.create_connection(("127.0.0.1", site.secure), 20)
        with context.wrap_socket(raw) as client:
            client.sendall(b"GET /push HTTP/1.1\r\nHost: x\r\n\r\n")
            assert parse_answer(read_to_end(client)).body == b""
            client.sendall(b"more")  # encrypted
            try:
                handover = receiver.accept(1)
            except TimeoutError:
                pass  # recognised as it came
            else:
                assert handover is not None
                handover.linger_timeout = 0
                with handover:
                    wait_until(lambda: bool(peek(handover.socket)), "a TLS record")
                    with pytest.raises(ConnectionAbortedError):
                        handover.write(b"x")
        assert "the client speaks TLS" in log.text
        assert_serves(site, receiver)


def peek(client: socket.socket) -> bytes:
    """What waits in a socket."""
    try:
        return client.recv(5, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return b""


def test_http2_is_recognised(site: FdpassSite, log: pytest.LogCaptureFixture) -> None:
    """A socket without a peer is never delivered."""
    url = f"http://127.0.0.1:{site.http2}/push"
    with Receiver(site.path) as receiver:
        with curl(url, "--http2-prior-knowledge") as process:
            with pytest.raises(TimeoutError):
                receiver.accept(1)
            output, _ = process.communicate(timeout=20)
        assert output.startswith(b"HTTP/2 200")
        assert output.endswith(b"\r\n\r\n")
        assert "as httpd hands over for HTTP/2" in log.text
        assert_serves(site, receiver)


# ---- fcgi-app fdpass ----------------------------------------------------------------


@contextmanager
def running(site: FdpassSite, *words: str) -> Iterator[Foreground]:
    """Run a program of Python's in the foreground until it receives; stop it."""
    process = Foreground(
        [sys.executable, *words],
        site.run / "program.log",
        env={"PATH": os.environ["PATH"], **program_environment({})},
    )
    try:
        wait_until(
            lambda: can_connect(site.path) or not process.alive(), "the program listens"
        )
        assert process.alive(), (site.run / "program.log").read_text()
        yield process
        status = process.stop()
        assert status == 0, (site.run / "program.log").read_text()
    finally:
        process.kill()
    assert not os.path.exists(site.path)


def can_connect(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_command_answers_curl(mpm_site: FdpassSite, workers: str) -> None:
    """A shell script serves: its environment names the client and Apache's process."""
    script = (
        'echo "$REMOTE_ADDR $REMOTE_PORT $FDPASS_PEER_PID $(readlink /proc/$$/fd/1)"'
    )
    bind = f"unix:{mpm_site.path}"
    options = ["--bind", bind, "--allow-user", web_user(), "--workers", workers]
    words = ["-m", "fcgi_app", "fdpass", *options, "--", "sh", "-c", script]
    with running(mpm_site, *words):
        for _ in range(3):
            with mpm_site.open() as client:
                port = client.getsockname()[1]
                answer = parse_answer(read_to_end(client))
            address, shown, pid, target = answer.text.split()
            assert (address, int(shown)) == ("127.0.0.1", port)
            status = Path(f"/proc/{pid}/status").read_text()
            assert f"\nPPid:\t{mpm_site.server.pid}\n" in status
            assert target.startswith("socket:")
        with curl(push(mpm_site), "-d", "lost") as process:
            assert finish(process).text.startswith("127.0.0.1 ")


def test_command_talks_with_the_client(site: FdpassSite) -> None:
    """Standard input is the client, too: cat gives back what it sends."""
    words = ["-m", "fcgi_app", "fdpass", "--bind", f"unix:{site.path}", "--", "cat"]
    with running(site, *words), site.open() as client:
        read_head(client)
        for word in (b"one", b"two"):
            client.sendall(word)
            assert client.recv(100) == word
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(client) == b""


# ---- the clock ----------------------------------------------------------------------


def resident_kib(pid: int) -> int:
    """The resident memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1])


@contextmanager
def descriptors(count: int) -> Iterator[None]:
    """Allow this process so many; its limit is as before at the end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, count) if soft != resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
def test_clock_serves_500_streams_while_apache_is_idle(mpm_site: FdpassSite) -> None:
    """All of them tick, no thread of Apache is busy, a client costs less than 3 KiB."""
    script = [str(EXAMPLES / "fdpass_clock.py"), f"unix:{mpm_site.path}", "0.1"]
    with descriptors(STREAMS + 200), ExitStack() as stack:
        clock = stack.enter_context(running(mpm_site, *script))
        mpm_site.wait_until_idle()
        clients = []

        def open_streams(count: int) -> None:
            new = [stack.enter_context(mpm_site.open("/events")) for _ in range(count)]
            for client in new:
                head = read_head(client)
                assert b"Content-Type: text/event-stream\r\n" in head
            clients.extend(new)
            for _ in range(2):  # what grows once has grown
                await_tick(clients)

        open_streams(20)
        before = resident_kib(clock.pid)
        open_streams(STREAMS - 20)
        grown = resident_kib(clock.pid) - before
        mpm_site.wait_until_idle()
        await_tick(clients)
        assert mpm_site.busy_workers() == 0
        assert grown / (STREAMS - 20) < PER_CLIENT_KIB
        print(f"{grown / (STREAMS - 20):.2f} KiB per client")
        # The end of the clock is a clean end for everybody.
        clock.send(signal.SIGTERM)
        for client in clients:
            rest = read_to_end(client)
            assert not rest or rest.endswith(b"\n\n")
        assert clock.wait() == 0


def await_tick(clients: list[socket.socket]) -> None:
    """Wait until every client has got an event that was not there before."""
    for client in clients:
        client.setblocking(False)
        try:
            while client.recv(65536):
                pass
        except BlockingIOError:
            pass
        client.settimeout(20)
    for client in clients:
        assert client.recv(65536).startswith(b"data: ")


def test_clock_forgets_clients_that_leave(site: FdpassSite) -> None:
    """The descriptors of clients that are gone are closed at the next ticks."""
    script = [str(EXAMPLES / "fdpass_clock.py"), f"unix:{site.path}", "0.01"]
    with running(site, *script) as clock:
        folder = f"/proc/{clock.pid}/fd"
        idle = len(os.listdir(folder))
        clients = [site.open("/events") for _ in range(20)]
        with site.open("/events") as stays:
            for client in clients:
                with client:
                    read_head(client)
                    assert client.recv(100).startswith(b"data: 20")
            wait_until(
                lambda: len(os.listdir(folder)) <= idle + 1, "closed descriptors"
            )
            read_head(stays)
            assert stays.recv(100).startswith(b"data: 20")

"""What Apache's mod_proxy_fdpass does, seen by a receiver without any of our code.

``fcgi_app.fdpass`` and its man page rest on these facts; should another Apache behave
differently, this is where it shows.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest

from .servers import wait_until
from .servers.fdpass import (
    HEAD,
    HTTP2,
    SECURE,
    Delivery,
    FdpassSite,
    read_head,
    read_to_end,
    receiver,
)
from .servers.http import parse_answer
from .servers.process import require, web_user

pytestmark = pytest.mark.e2e

MPMS = {"event": (), "worker": ("-DWORKER",), "prefork": ("-DPREFORK",)}
LOG = 'CustomLog "@RUN@/access.log" "%r %>s %B"\n'
HEAD_ROOM = 8000
"""Bytes that Apache reads at first, the head among them (AP_IOBUFSIZE)."""


@pytest.fixture(scope="module", params=MPMS)
def mpm_site(request: pytest.FixtureRequest) -> Iterator[FdpassSite]:
    with FdpassSite(options=MPMS[request.param]) as site:
        yield site
        print(site.log())


@pytest.fixture(scope="module")
def site() -> Iterator[FdpassSite]:
    with FdpassSite(LOG) as site:
        yield site
        print(site.log())


# ---- what arrives -------------------------------------------------------------------


def test_delivery_is_one_byte_and_one_descriptor(mpm_site: FdpassSite) -> None:
    """A NUL, SCM_RIGHTS with one int, then the end: there is no way to answer."""
    with (
        receiver(mpm_site) as listener,
        mpm_site.open(),
        Delivery(listener) as delivery,
    ):
        assert delivery.payload == b"\0"
        assert (delivery.level, delivery.type) == (
            socket.SOL_SOCKET,
            socket.SCM_RIGHTS,
        )
        assert len(delivery.descriptors) == 1
        assert delivery.flags == 0
        assert delivery.rest == b""


def test_descriptor_is_nonblocking_and_not_close_on_exec(mpm_site: FdpassSite) -> None:
    """The client's socket comes as Apache used it; TCP_NODELAY is set."""
    with (
        receiver(mpm_site) as listener,
        mpm_site.open() as client,
        Delivery(listener) as delivery,
    ):
        assert delivery.status_flags & os.O_NONBLOCK
        assert not delivery.descriptor_flags & fcntl.FD_CLOEXEC
        found = delivery.client
        assert found.getpeername() == client.getsockname()
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_sender_is_apache(mpm_site: FdpassSite) -> None:
    """SO_PEERCRED names a process of Apache and its account."""
    import pwd

    with receiver(mpm_site) as listener, mpm_site.open(), Delivery(listener) as found:
        assert found.uid == pwd.getpwnam(web_user()).pw_uid
        status = Path(f"/proc/{found.pid}/status").read_text()
        assert f"\nPPid:\t{mpm_site.server.pid}\n" in status


def test_client_belongs_to_the_receiver_alone(mpm_site: FdpassSite) -> None:
    """Both directions work, and the receiver's close is the connection's end."""
    with receiver(mpm_site) as listener, mpm_site.open() as client:
        with Delivery(listener) as delivery:
            assert HEAD.fullmatch(read_head(client))
            client.sendall(b"marco")
            assert delivery.client.recv(100) == b"marco"
            delivery.client.sendall(b"polo")
        assert read_to_end(client) == b"polo"


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "OPTIONS"])
@pytest.mark.parametrize("protocol", ["HTTP/1.1", "HTTP/1.0"])
def test_head_is_the_same_for_all(site: FdpassSite, method: str, protocol: str) -> None:
    """Status line, Date, Server, Connection: close; no type, length or chunks."""
    with (
        receiver(site) as listener,
        socket.create_connection(("127.0.0.1", site.port), 20) as client,
    ):
        client.sendall(f"{method} /push {protocol}\r\nHost: x\r\n\r\n".encode())
        with Delivery(listener):
            pass
        assert HEAD.fullmatch(read_to_end(client))


def test_http_0_9_gets_no_head(site: FdpassSite) -> None:
    """The oldest protocol has none."""
    with (
        receiver(site) as listener,
        socket.create_connection(("127.0.0.1", site.port), 20) as client,
    ):
        client.sendall(b"GET /push\r\n")
        with Delivery(listener) as delivery:
            delivery.client.sendall(b"all of it")
        assert read_to_end(client) == b"all of it"


def test_header_set_is_part_of_the_head(site: FdpassSite) -> None:
    """What the configuration sets is there, and what the receiver says is body."""
    with receiver(site) as listener, site.open("/events") as client:
        with Delivery(listener) as delivery:
            delivery.client.sendall(b"data: 1\n\n")
        answer = parse_answer(read_to_end(client))
    assert answer.header("Content-Type") == "text/event-stream"
    assert answer.header("Cache-Control") == "no-store"
    assert answer.header("Content-Length") is None
    assert answer.body == b"data: 1\n\n"


def test_conditional_request_gets_a_200(site: FdpassSite) -> None:
    """Conditions, and whatever else the head says, are without effect."""
    headers = {
        "If-None-Match": "*",
        "If-Modified-Since": "Sat, 01 Jan 2022 00:00:00 GMT",
    }
    with receiver(site) as listener, site.open(headers=headers) as client:
        with Delivery(listener):
            pass
        assert HEAD.fullmatch(read_to_end(client))


def test_access_log_counts_the_head_alone(site: FdpassSite) -> None:
    """The access log says 200 and no byte of body, long before the end."""
    log = site.run / "access.log"
    with (
        receiver(site) as listener,
        site.open("/push?logged"),
        Delivery(listener) as delivery,
    ):
        delivery.client.sendall(b"x" * 1000)
        wait_until(
            lambda: "GET /push?logged HTTP/1.1 200 0\n" in log.read_text(),
            "the line in the access log",
        )


# ---- the request's body -------------------------------------------------------------


def post(site: FdpassSite, body: bytes, *, length: int | None = None) -> socket.socket:
    """Send a POST in one piece, with as much of its body as is given."""
    length = len(body) if length is None else length
    head = f"POST /push HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
    client = socket.create_connection(("127.0.0.1", site.port), 20)
    client.sendall(head.encode() + body)
    return client


def test_body_beside_the_head_is_lost(site: FdpassSite) -> None:
    """Ten bytes that came together with the head never reach the receiver."""
    with (
        receiver(site) as listener,
        post(site, b"0123456789") as client,
        Delivery(listener) as delivery,
    ):
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(delivery.client) == b""


def test_body_behind_the_head_arrives(site: FdpassSite) -> None:
    """What is sent after the handover is all there."""
    with (
        receiver(site) as listener,
        post(site, b"", length=10) as client,
        Delivery(listener) as delivery,
    ):
        client.sendall(b"0123456789")
        client.shutdown(socket.SHUT_WR)
        assert read_to_end(delivery.client) == b"0123456789"


def test_long_body_loses_its_beginning(site: FdpassSite) -> None:
    """Of 200,000 bytes the receiver gets the end, without up to 8000 at the front."""
    body = b"".join(b"%07d\n" % number for number in range(25_000))
    with (
        receiver(site) as listener,
        post(site, body) as client,
        Delivery(listener) as delivery,
    ):
        client.shutdown(socket.SHUT_WR)
        rest = read_to_end(delivery.client)
    assert body.endswith(rest)
    assert 0 < len(body) - len(rest) <= HEAD_ROOM


def test_expect_100_continue_gets_the_200(site: FdpassSite) -> None:
    """No interim answer: the client that waits for one gets the head instead."""
    with receiver(site) as listener:
        headers = {"Expect": "100-continue", "Content-Length": "10"}
        with site.open(method="POST", headers=headers) as client, Delivery(listener):
            assert HEAD.fullmatch(read_head(client))


def test_pipelined_request_is_swallowed(site: FdpassSite) -> None:
    """A second request in the same packet is gone, and the connection closes."""
    request = b"GET /push HTTP/1.1\r\nHost: x\r\n\r\n"
    with (
        receiver(site) as listener,
        socket.create_connection(("127.0.0.1", site.port), 20) as client,
    ):
        client.sendall(request * 2)
        with Delivery(listener) as delivery:
            client.shutdown(socket.SHUT_WR)
            assert read_to_end(delivery.client) == b""
        assert HEAD.fullmatch(read_to_end(client))


# ---- what a receiver can do nothing with ---------------------------------------------


def test_tls_delivers_encrypted_bytes() -> None:
    """Behind TLS the socket brings records, and the client takes its 200 for empty."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with FdpassSite(SECURE) as site, receiver(site) as listener:
        raw = socket.create_connection(("127.0.0.1", site.secure), 20)
        with context.wrap_socket(raw) as client:
            client.sendall(b"GET /push HTTP/1.1\r\nHost: x\r\n\r\n")
            with Delivery(listener) as delivery:
                assert HEAD.fullmatch(read_to_end(client))  # a close_notify ends it
                client.sendall(b"more")
                record = delivery.client.recv(5)
            assert record[0] in range(20, 24)
            assert record[1:3] == b"\x03\x03"


def test_http2_delivers_a_socket_without_a_peer() -> None:
    """With HTTP/2 Apache makes a socket up, which was never connected."""
    with FdpassSite(HTTP2) as site, receiver(site) as listener:
        url = f"http://127.0.0.1:{site.http2}/push"
        command = [require("curl"), "-s", "--http2-prior-knowledge", "-m", "20", url]
        with subprocess.Popen([*command, "-w", "%{http_code}"], stdout=PIPE) as curl:
            with (
                Delivery(listener) as delivery,
                pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)),
            ):
                delivery.client.getpeername()
            assert curl.communicate(timeout=20)[0] == b"200"

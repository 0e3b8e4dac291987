"""Where a receiver listens, and what it says about anything else."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcgi_app.errors import ConfigError
from fcgi_app.fdpass import Receiver, Sender

from .handovers import connect_to, open_descriptors, taken


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "receiver.sock"


@pytest.fixture
def receiver(path: Path) -> Iterator[Receiver]:
    with Receiver(path) as receiver:
        yield receiver


def test_receiver_sets_the_mode(path: Path) -> None:
    """The socket file has exactly the mode that was asked for, 0600 by default."""
    with Receiver(path) as receiver:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert receiver.address == f"unix:{path}"
    with Receiver(path, mode=0o666):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666


def test_receiver_takes_a_relative_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name without a slash is a path, too, for both sides."""
    monkeypatch.chdir(tmp_path)
    ours, theirs = socket.socketpair()
    with ours, theirs, Receiver("here.sock") as receiver:
        assert (tmp_path / "here.sock").is_socket()
        Sender("here.sock").send(theirs)
        taken(receiver).detach().close()


def test_receiver_replaces_a_file_left_behind(path: Path) -> None:
    """A socket file that nobody listens on is in nobody's way."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with Receiver(path):
        connect_to(path).close()


def test_receiver_refuses_the_path_of_a_live_one(
    receiver: Receiver, path: Path
) -> None:
    """Two receivers on one path: the second says so, the first goes on."""
    with pytest.raises(OSError, match=r"listens on the socket.*receiver\.sock") as e:
        Receiver(path)
    assert e.value.errno == errno.EADDRINUSE
    ours, theirs = socket.socketpair()
    with ours, theirs:
        Sender(path).send(theirs)
        taken(receiver).detach().close()


def test_receiver_refuses_the_path_of_a_file(path: Path) -> None:
    """A regular file is never removed; the error names it."""
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"not a socket.*receiver\.sock"):
        Receiver(path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("sender_timeout", -1),
        ("sender_timeout", float("nan")),
        ("write_timeout", -0.5),
        ("max_queued", 0),
        ("backlog", -1),
        ("mode", 0o1000),
    ],
)
def test_receiver_checks_its_arguments(path: Path, argument: str, value: float) -> None:
    """A senseless value is refused with its name; nothing is left behind."""
    arguments: dict[str, float] = {argument: value}
    with pytest.raises(ConfigError, match=argument):
        Receiver(path, **arguments)  # type: ignore[arg-type]
    assert not path.exists()


@pytest.mark.parametrize("address", ["127.0.0.1:0", ":9000", "", "fd:x"])
def test_receiver_wants_a_unix_socket(address: str) -> None:
    """TCP cannot carry descriptors."""
    with pytest.raises(ConfigError, match="address"):
        Receiver(address)


def test_receiver_refuses_a_tcp_descriptor() -> None:
    """A listening descriptor of another family is refused, and closed."""
    before = open_descriptors()
    listener = socket.create_server(("127.0.0.1", 0))
    with pytest.raises(ConfigError, match="is not a Unix socket"):
        Receiver(listener.detach())
    assert open_descriptors() == before


def test_receiver_refuses_what_does_not_listen() -> None:
    """A connected socket is no listener, and stays its owner's."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(ConfigError, match="not listening"):
        Receiver(ours.fileno())

"""Control messages as recvmsg gives and sendmsg takes them."""

from __future__ import annotations

import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.fdpass.ancillary import (
    build_rights,
    close_descriptors,
    parse_message,
    receive_message,
)


@given(st.lists(st.integers(0, 2**31 - 1), max_size=8))
def test_parse_message_finds_what_build_rights_wrote(numbers: list[int]) -> None:
    """Descriptors come out as they went in, in their order."""
    message = parse_message(b"x", build_rights(numbers), 0)
    assert message == (b"x", tuple(numbers), False, ())


@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 9), st.binary(max_size=40)))
)
def test_parse_message_takes_any_control_data(
    control: list[tuple[int, int, bytes]],
) -> None:
    """Whole ints of SCM_RIGHTS are descriptors, all else is named, nothing raises."""
    rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS)
    message = parse_message(b"", control, socket.MSG_CTRUNC)
    assert message.truncated
    assert len(message.descriptors) == sum(
        len(content) // 4 for *kind, content in control if tuple(kind) == rights
    )
    assert list(message.others) == [
        (level, kind) for level, kind, _ in control if (level, kind) != rights
    ]


def test_receive_message_sets_close_on_exec() -> None:
    """A descriptor cannot be inherited from the first instant on."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendmsg([b"ab"], build_rights([0, 1]))
        message = receive_message(ours)
        try:
            assert message.data == b"ab"
            assert [os.get_inheritable(d) for d in message.descriptors] == [False] * 2
        finally:
            close_descriptors(message.descriptors)


def test_receive_message_never_waits() -> None:
    """Without a message there is BlockingIOError, though the socket is blocking."""
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(BlockingIOError):
        receive_message(ours)

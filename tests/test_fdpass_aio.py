"""The receiver in an asyncio event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from fcgi_app.fdpass import AsyncReceiver, Handover, Sender, send

from .handovers import (
    TIMEOUT,
    connect_to,
    no_descriptors,
    open_descriptors,
    read_all,
    send_raw,
    tcp_connection,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "receiver.sock"


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run ``main`` in an event loop of its own, in debug mode, not for ever."""
    asyncio.run(asyncio.wait_for(main, TIMEOUT), debug=True)


async def taken(receiver: AsyncReceiver) -> Handover:
    handover = await receiver.accept()
    assert handover is not None
    return handover


def test_async_iteration_delivers_and_ends(path: Path) -> None:
    """Clients come in order; after stop the loop ends and the file is gone."""

    async def main() -> None:
        found = []
        async with AsyncReceiver(path) as receiver:
            for data in (b"1", b"2", b"3"):
                Sender(path).send(theirs, data)
            async for handover in receiver:
                found.append(handover.data)
                handover.detach().close()
                receiver.stop()
            assert found == [b"1", b"2", b"3"]
            assert not path.exists()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(main())


def test_async_receiver_serves_many_at_once(path: Path) -> None:
    """Each client is a task with asyncio's own streams."""

    async def serve(handover: Handover) -> None:
        reader, writer = await asyncio.open_connection(sock=handover.detach())
        writer.write(b"body of " + handover.data)
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    def browse(number: int) -> None:
        with tcp_connection() as (client, server):
            Sender(path).send(server, b"%d" % number)
            server.close()
            bodies.append(read_all(client))

    bodies: list[bytes] = []
    threads = [threading.Thread(target=browse, args=(n,)) for n in range(8)]

    async def main() -> None:
        async with AsyncReceiver(path) as receiver:
            for thread in threads:
                thread.start()
            tasks = [
                asyncio.create_task(serve(await taken(receiver))) for _ in range(8)
            ]
            await asyncio.gather(*tasks)

    run(main())
    for thread in threads:
        thread.join(TIMEOUT)
    assert sorted(bodies) == [b"body of %d" % n for n in range(8)]


def test_async_accept_waits(path: Path) -> None:
    """A client that comes while a task waits wakes it."""

    async def main() -> None:
        async with AsyncReceiver(path) as receiver:
            waiting = asyncio.create_task(taken(receiver))
            await asyncio.sleep(0)
            assert not waiting.done()
            Sender(path).send(theirs)
            (await waiting).detach().close()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(main())


def test_async_receiver_takes_senders_while_nobody_waits(path: Path) -> None:
    """The backlog is emptied whatever the program does otherwise."""

    async def main() -> None:
        async with AsyncReceiver(path, backlog=1) as receiver:
            Sender(path).send(theirs, b"first")
            first = await taken(receiver)
            first.detach().close()
            for _ in range(50):
                await asyncio.to_thread(Sender(path).send, theirs)
            for _ in range(50):
                (await taken(receiver)).detach().close()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(main())


def test_async_several_tasks_wait(path: Path) -> None:
    """Each client goes to one of them; stop ends all."""

    async def main() -> None:
        async with AsyncReceiver(path) as receiver:
            tasks = [asyncio.create_task(receiver.accept()) for _ in range(5)]
            for _ in range(2):
                Sender(path).send(theirs)
            while sum(task.done() for task in tasks) < 2:
                await asyncio.wait(
                    [task for task in tasks if not task.done()],
                    return_when=asyncio.FIRST_COMPLETED,
                )
            receiver.stop()
            got = [handover for handover in await asyncio.gather(*tasks) if handover]
            assert len(got) == 2
            for handover in got:
                handover.detach().close()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(main())


def test_async_cancelled_accept_loses_nothing(path: Path) -> None:
    """A timeout around accept leaves later clients to the next call."""

    async def main() -> None:
        async with AsyncReceiver(path) as receiver:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(receiver.accept(), 0.01)
            Sender(path).send(theirs, b"kept")
            handover = await taken(receiver)
            assert handover.data == b"kept"
            handover.detach().close()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(main())


def test_async_stop_in_a_signal_handler(path: Path) -> None:
    """stop may be called by the loop's signal handler."""

    async def main() -> None:
        async with AsyncReceiver(path) as receiver:
            loop = asyncio.get_running_loop()
            loop.add_signal_handler(signal.SIGUSR2, receiver.stop)
            loop.call_soon(os.kill, os.getpid(), signal.SIGUSR2)
            assert await receiver.accept() is None
            loop.remove_signal_handler(signal.SIGUSR2)

    run(main())


def test_async_stop_before_the_first_accept(path: Path) -> None:
    """A receiver that was stopped at once still serves who had connected."""

    async def main() -> None:
        async with AsyncReceiver(path) as receiver:
            Sender(path).send(theirs)
            receiver.stop()
            (await taken(receiver)).detach().close()
            assert await receiver.accept() is None

    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(main())


def test_async_silent_sender_is_closed(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Deadlines are kept though nothing else happens in the loop."""

    async def main() -> None:
        async with AsyncReceiver(path, sender_timeout=0.1) as receiver:
            waiting = asyncio.create_task(receiver.accept())
            with connect_to(path) as silent:
                silent.setblocking(False)
                loop = asyncio.get_running_loop()
                assert await loop.sock_recv(silent, 1) == b""
            receiver.stop()
            assert await waiting is None

    run(main())
    assert "no descriptor within 0.1 s; closed" in caplog.text


def test_async_fault_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The rules are those of the other receiver."""

    async def main() -> None:
        async with AsyncReceiver(path) as receiver:
            send_raw(path, b"\0", 0, 0)
            Sender(path).send(theirs, b"good")
            handover = await taken(receiver)
            assert handover.data == b"good"
            handover.detach().close()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(main())
    assert "2 descriptors in one message" in caplog.text


def test_async_max_queued_goes_on_when_there_is_room(path: Path) -> None:
    """With a queue of one the next sender is taken as soon as one is delivered."""

    async def main() -> None:
        async with AsyncReceiver(path, max_queued=1) as receiver:
            for data in (b"1", b"2", b"3"):
                Sender(path).send(theirs, data)
            for data in (b"1", b"2", b"3"):
                handover = await taken(receiver)
                assert handover.data == data
                handover.detach().close()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(main())


def test_async_goes_on_after_it_was_out_of_descriptors(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The pause ends by itself, without a new event."""

    async def main() -> None:
        async with AsyncReceiver(path) as receiver:
            waiting = asyncio.create_task(taken(receiver))
            await asyncio.sleep(0)
            Sender(path).send(theirs, b"patient")
            with no_descriptors():
                while "no sender is taken" not in caplog.text:
                    await asyncio.sleep(0.01)
                assert not waiting.done()
            handover = await waiting
            assert handover.data == b"patient"
            handover.detach().close()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(main())


def test_async_close_wakes_who_waits(path: Path) -> None:
    """accept returns None when the receiver is closed under it."""

    async def main() -> None:
        receiver = AsyncReceiver(path)
        waiting = asyncio.create_task(receiver.accept())
        await asyncio.sleep(0)
        receiver.close()
        receiver.close()
        assert await waiting is None
        assert await receiver.accept() is None

    before = open_descriptors()
    run(main())
    assert open_descriptors() == before


def test_async_receiver_belongs_to_one_loop(path: Path) -> None:
    """In a second event loop it says so; close still works."""

    async def attach() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(receiver.accept(), 0.01)

    async def other() -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await receiver.accept()

    receiver = AsyncReceiver(path)
    run(attach())
    run(other())
    receiver.close()


def test_async_sender_that_waits(path: Path) -> None:
    """One that sends later is served later; others are not delayed."""

    async def main() -> None:
        async with AsyncReceiver(path) as receiver:
            with connect_to(path) as slow:
                Sender(path).send(theirs, b"quick")
                handover = await taken(receiver)
                assert handover.data == b"quick"
                handover.detach().close()
                send(slow, theirs, b"slow")
                handover = await taken(receiver)
                assert handover.data == b"slow"
                handover.detach().close()

    ours, theirs = socket.socketpair()
    with ours, theirs:
        run(main())

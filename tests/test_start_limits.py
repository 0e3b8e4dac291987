"""``fcgi-app start``: requests that take too long, workers that have done enough."""

from __future__ import annotations

import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fcgi_app.client import Client, build_cgi_params, request
from fcgi_app.errors import FcgiAppError

from .ourworker import OURS, ask, ask_pid
from .pools import Pool
from .servers import wait_until

pytestmark = pytest.mark.slow


def is_cut_off(pool: Pool, query: str) -> float:
    """Send a request that is not to be answered to its end; how long that took."""
    began = time.monotonic()
    with pytest.raises((FcgiAppError, OSError)):
        ask(pool, query)
    return time.monotonic() - began


# ---- max_requests -------------------------------------------------------------------


def test_worker_leaves_after_its_requests() -> None:
    """It answers so many, no failure is reported, and a successor is there at once."""
    with Pool("--max-requests", "3", "--jitter", "0", source=OURS) as pool:
        pids = [ask_pid(pool) for _ in range(9)]
        assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]
        pool.wait_for_log("has answered 3 requests", 3)
        assert "ended with" not in pool.log()
        assert "next start" not in pool.log()


def test_jitter_makes_the_number_of_requests_less() -> None:
    """From the number itself down to the part that jitter leaves."""
    with Pool("--max-requests", "4", "--jitter", "0.5", source=OURS) as pool:
        pids = [ask_pid(pool) for _ in range(24)]
        counts = [pids.count(pid) for pid in dict.fromkeys(pids)][:-1]
        assert set(counts) <= {2, 3, 4}


def test_no_request_is_lost_while_workers_are_replaced() -> None:
    """Clients side by side, with kept and new connections, all get their answers."""
    options = ("--max-requests", "5", "--workers", "2")

    def many(keep: bool) -> int:
        params = build_cgi_params("/app")
        answered = 0
        with Client(f"unix:{pool.path}", keep_conn=keep, timeout=20) as client:
            for _ in range(40):
                kept = client.connected
                try:
                    answer = client.request(params)
                except (FcgiAppError, OSError):
                    # Closed while the request was on its way; nginx repeats it, too.
                    assert kept
                    answer = client.request(params)
                answered += answer.status == 200
        return answered

    with Pool(*options, source=OURS) as pool, ThreadPoolExecutor(4) as clients:
        assert list(clients.map(many, [True, False, True, False])) == [40] * 4
        pool.wait_for_log("requests", 20)


# ---- request_timeout ----------------------------------------------------------------


@pytest.mark.parametrize("query", ["wedge", "deaf"])
def test_wedged_worker_is_gone_in_time(query: str) -> None:
    """Its client gets an end, the log the traceback, and another worker serves."""
    with Pool("--request-timeout", "1", "--workers", "2", source=OURS) as pool:
        before = pool.wait_for_workers(2)
        took = is_cut_off(pool, query)
        assert 1 <= took < 2
        pool.wait_for_log("in wedge")
        line = next(x for x in pool.log().splitlines() if "takes too long" in x)
        assert re.search(rf"worker \d+: request takes .* GET /app\?{query}$", line)
        assert ask_pid(pool) in pool.wait_for_workers(2)
        assert len(pool.workers() & before) == 1
        assert "ended with" not in pool.log()


def test_timeout_holds_for_a_worker_that_is_stopped_already() -> None:
    """A reload that leaves it to its request does not set the limit aside."""
    options = ("--request-timeout", "1", "--stop-timeout", "30")
    with Pool(*options, source=OURS) as pool, ThreadPoolExecutor(1) as clients:
        (old,) = pool.wait_for_workers(1)
        cut_off = clients.submit(is_cut_off, pool, "deaf")
        pool.wait_for_log("wedged")
        pool.send(signal.SIGHUP)
        pool.wait_for_log("reloaded")
        assert cut_off.result() < 2
        pool.wait_for_end(old)


def test_others_feel_nothing_of_a_wedged_worker() -> None:
    """All requests besides are answered, by workers that stay."""
    with Pool("--request-timeout", "0.5", "--workers", "3", source=OURS) as pool:
        with ThreadPoolExecutor(2) as clients:
            cut_off = clients.submit(is_cut_off, pool, "wedge")
            answers = 0
            while not cut_off.done():
                answers += ask(pool).status == 200
        assert answers > 10


def test_request_that_takes_its_time_is_left_alone() -> None:
    """The timeout is of a request, not of the worker or of its connection."""
    with Pool("--request-timeout", "0.6", source=OURS) as pool:
        params = build_cgi_params("/app?sleep=0.3")
        with Client(f"unix:{pool.path}", keep_conn=True, timeout=20) as client:
            pids = {int(client.request(params).body) for _ in range(5)}
        assert len(pids) == 1


# ---- slow_log -----------------------------------------------------------------------


def test_slow_request_is_reported_once() -> None:
    """With its age, method and URI in one line, and where it is; it is answered."""
    with Pool("--slow-log", "0.3", source=OURS) as pool:
        worker = ask_pid(pool, "sleep=2.5")
        pool.wait_for_log("Current thread")
        (line,) = [x for x in pool.log().splitlines() if "is slow" in x]
        found = re.search(r"worker (\d+): request is slow: ([\d.]+) s GET (.*)$", line)
        assert found is not None
        assert (int(found[1]), found[3]) == (worker, "/app?sleep=2.5")
        assert 0.3 <= float(found[2]) < 2.5
        assert pool.log().count("Current thread") == 1
        ask(pool)
        ask(pool, "sleep=2.5")
        pool.wait_for_log("is slow", 2)
        assert pool.workers() == {worker}


def test_what_the_web_server_sent_is_escaped() -> None:
    """A line of the log is one line."""
    with Pool("--slow-log", "0.2", source=OURS) as pool:
        params = {"QUERY_STRING": "sleep=0.5", "REQUEST_URI": "/a\nfcgi-app: \x1b[2J"}
        request(f"unix:{pool.path}", {**params, "REQUEST_METHOD": "GET"}, timeout=20)
        pool.wait_for_log(r"GET /a\nfcgi-app: \x1b[2J")


# ---- max_rss ------------------------------------------------------------------------


def test_worker_that_has_grown_is_replaced() -> None:
    """Its successor comes first, and who is in work finishes it."""
    with Pool("--max-rss", "64M", source=OURS) as pool:
        large = ask_pid(pool, "hoard")
        pool.wait_for_log(f"worker {large} is too large")
        (other,) = pool.wait_for_other_workers({large})
        assert ask_pid(pool) == other
        log = pool.log()
        assert log.index(f"worker {other} started") < log.index("is too large")


def test_foreign_worker_that_has_grown_is_replaced() -> None:
    """Its memory is seen from outside."""
    source = """
import os, socket
listener = socket.socket(fileno=0)
hoard = []
while True:
    connection, _ = listener.accept()
    hoard.append(b"x" * (100 << 20))
    connection.sendall(b"%d\\n" % os.getpid())
    connection.recv(1)
    connection.close()
"""
    with Pool("--max-rss", "64M", source=source) as pool:
        large = pool.ask()
        pool.wait_for_log(f"worker {large} is too large")
        pool.wait_for_other_workers({large})


# ---- foreign programs ---------------------------------------------------------------


def test_limits_without_effect_are_told_once() -> None:
    """Of a program that does not use fcgi_app no request is seen."""
    options = ("--workers", "2", "--request-timeout", "1", "--max-requests", "9")
    with Pool(*options) as pool:
        pool.wait_for_log("does not use fcgi_app")
        pool.send(signal.SIGTTIN)
        pool.wait_for_workers(3)
        pool.ask()
        (line,) = [x for x in pool.log().splitlines() if "does not use" in x]
        assert line.endswith("without effect on it: max_requests, request_timeout")


# ---- what it costs ------------------------------------------------------------------


def test_limits_wake_an_idle_supervisor_seldom() -> None:
    """Not more than once in a second, whatever is to be looked at."""
    options = ("--request-timeout", "0.2", "--slow-log", "0.1", "--max-rss", "1G")
    with Pool(*options, "--workers", "2", source=OURS) as pool:
        ask(pool)

        def wake_ups() -> int:
            with open(f"/proc/{pool.process.pid}/status") as status:
                return next(int(x.split()[1]) for x in status if x.startswith("volun"))

        def is_calm() -> bool:
            before = wake_ups()
            time.sleep(2.0)  # that little happens can only be seen in time
            return wake_ups() - before <= 2

        wait_until(is_calm, "two seconds with two wake-ups at most")


# ---- the supervisor's own death -----------------------------------------------------


def test_worker_that_ignores_sigterm_does_not_survive() -> None:
    """When the supervisor is killed, the system kills it."""
    source = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{OURS}"
    with Pool("--workers", "2", source=source) as pool:
        pids = pool.wait_for_workers(2)
        pool.send(signal.SIGUSR2)
        pool.wait_for_log("executed again")
        assert ask_pid(pool) in pids  # the exec has killed nobody
        os.kill(pool.process.pid, signal.SIGKILL)
        assert pool.wait() == -signal.SIGKILL
        wait_until(lambda: not any(map(is_alive, pids)), "no worker")


def is_alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False

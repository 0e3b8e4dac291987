"""The configuration of Apache's mod_proxy_fdpass: what works, and how the rest fails.

The receiver has none of our code.
"""

from __future__ import annotations

import os
import select
import shutil
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from .servers import ask, wait_until
from .servers import webservers as webservers_module
from .servers.fdpass import (
    HEAD,
    MODULES,
    Delivery,
    FdpassSite,
    listen_raw,
    read_head,
    read_to_end,
    receiver,
)
from .servers.http import parse_answer
from .servers.process import as_web_user, web_user

pytestmark = pytest.mark.e2e

# Shapes of the URL; every one but the last few is a mistake that somebody will make.
URLS = f"""
LoadModule rewrite_module {MODULES}/mod_rewrite.so
LoadModule deflate_module {MODULES}/mod_deflate.so
ProxyPass "/dir/" "fd://run/"
ProxyPass "/up" "fd://../@NAME@/run/fd.sock"
ProxyPass "/flusher" "fd://www/fd.sock" flusher=nobody
ProxyPassMatch "^/match" "fd://run/fd.sock"
<Location "/location">
    ProxyPass "fd://run/fd.sock"
</Location>
<Location "/handler">
    SetHandler "proxy:fd://run/fd.sock"
</Location>
ProxyPass "/unix" "unix:@RUN@/run/fd.sock|fd://localhost/"
ProxyPass "/deflated" "fd://run/fd.sock"
<Location "/deflated">
    Header set Content-Type "text/plain"
    SetOutputFilter DEFLATE
</Location>
RewriteEngine On
RewriteRule "^/through(/.*)?$" "/push" [PT]
RewriteRule "^/proxied$" "fd://run/fd.sock" [P]
"""


@pytest.fixture(scope="module")
def site() -> Iterator[FdpassSite]:
    with FdpassSite(URLS) as site:
        yield site
        print(site.log())


# ---- the form of the URL ------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "/push",
        "/push?query",
        "/tree",
        "/tree/",
        "/tree/a/b?c",
        "/events",
        "/up",
        "/location",
        "/through",
        "/through/a/b",
        "/dir/fd.sock",
    ],
)
def test_url_leads_to_the_socket(site: FdpassSite, target: str) -> None:
    """These forms of the configuration work; with /dir/ the client names the socket."""
    with receiver(site) as listener, site.open(target) as client:
        with Delivery(listener) as delivery:
            delivery.client.sendall(b"here")
        assert read_to_end(client).endswith(b"\r\n\r\nhere")


@pytest.mark.parametrize(
    "target",
    ["/push/", "/push/y", "/match", "/match/y", "/dir/other.sock", "/unix"],
)
def test_url_leads_to_another_socket(site: FdpassSite, target: str) -> None:
    """What follows the prefix is glued to the socket's path: a 500."""
    with receiver(site):
        assert ask(site.port, target).status == 500


@pytest.mark.parametrize("target", ["/proxied", "/handler"])
def test_url_that_does_not_work(site: FdpassSite, target: str) -> None:
    """mod_rewrite's [P] and SetHandler cannot name the socket."""
    with receiver(site) as listener:
        answer = ask(site.port, target)
        assert answer.status >= 400
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_flusher_is_ignored_in_silence(site: FdpassSite) -> None:
    """Apache starts and serves with a flusher that does not exist."""
    with receiver(site, "www") as listener, site.open("/flusher") as client:
        with Delivery(listener):
            pass
        assert HEAD.fullmatch(read_to_end(client))
    assert "nobody" not in site.log()


def test_absolute_path_is_refused() -> None:
    """Apache does not start with fd:///path."""
    site = FdpassSite('ProxyPass "/x" "fd:///tmp/a.sock"\n')
    with pytest.raises(AssertionError, match="ProxyPass URL must be absolute!"):
        site.__enter__()
    shutil.rmtree(site.run)


# ---- what goes wrong ----------------------------------------------------------------


def test_no_socket_file_is_a_500(site: FdpassSite) -> None:
    """AH01152 in the log names the path."""
    assert ask(site.port, "/push").status == 500
    site.wait_for_log(f"AH01152: Failed to connect to '{site.path}'")


def test_nobody_listens_is_a_500(site: FdpassSite) -> None:
    """The file is there, its process is gone."""
    with receiver(site) as listener:
        listener.close()
        assert ask(site.port, "/push").status == 500
    site.wait_for_log("(111)Connection refused")


def test_no_permission_is_a_500(monkeypatch: pytest.MonkeyPatch) -> None:
    """Apache's account must be allowed to write to the socket."""
    privileges = as_web_user()
    kept = [option for option in privileges if "caps" not in option]
    monkeypatch.setattr(webservers_module, "as_web_user", lambda: kept)
    site = FdpassSite()
    if kept:
        import pwd

        owner = pwd.getpwnam(web_user())
        for directory in (site.run, site.run / "run"):
            os.chown(directory, owner.pw_uid, owner.pw_gid)
    with site, receiver(site):
        os.chmod(site.path, 0)
        assert ask(site.port, "/push").status == 500
        site.wait_for_log("(13)Permission denied")


def test_receiver_that_drops_the_client_is_an_empty_200(site: FdpassSite) -> None:
    """Apache cannot know, and says nothing."""
    with receiver(site) as listener, site.open() as client:
        with listener.accept()[0] as control:
            assert control.recv(1) == b"\0"  # and the descriptor goes unseen
        assert HEAD.fullmatch(read_to_end(client))


def test_listener_that_never_accepts(site: FdpassSite) -> None:
    """The head comes at once, the end when the listener dies."""
    with receiver(site) as listener, site.open() as client:
        assert HEAD.fullmatch(read_head(client))
        client.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv(1)
        client.settimeout(20)
        site.wait_until_idle()  # Apache has handed it over, and knows no more of it
        listener.close()
        assert read_to_end(client) == b""


def test_full_backlog_holds_apaches_threads() -> None:
    """A thread of Apache waits in connect() for each request, with no limit of time."""
    with FdpassSite() as site, ExitStack() as stack:
        with listen_raw(site.path, backlog=0) as listener:
            clients = [stack.enter_context(site.open()) for _ in range(4)]
            # One connection fits into a backlog of 0, the others wait.
            wait_until(lambda: site.busy_workers() == 3, "three busy threads")
            assert len(select.select(clients, [], [], 0)[0]) <= 1  # no head for them
            for _ in clients:
                with Delivery(listener):
                    pass
            for client in clients:
                assert HEAD.fullmatch(read_to_end(client))
        site.wait_until_idle()


def test_deflate_breaks_the_body(site: FdpassSite) -> None:
    """The head says gzip, and plain text follows the beginning of a gzip stream."""
    headers = {"Accept-Encoding": "gzip"}
    with receiver(site) as listener, site.open("/deflated", headers=headers) as client:
        with Delivery(listener) as delivery:
            delivery.client.sendall(b"plain text")
        answer = parse_answer(read_to_end(client))
    assert answer.header("Content-Encoding") == "gzip"
    assert answer.body.startswith(b"\x1f\x8b")
    assert answer.body.endswith(b"plain text")


def test_configured_places_are_not_compressed() -> None:
    """The file of examples/servers keeps its places out of a filter for the site."""
    extra = f"""
        LoadModule filter_module {MODULES}/mod_filter.so
        LoadModule deflate_module {MODULES}/mod_deflate.so
        SetOutputFilter DEFLATE
    """
    with FdpassSite(extra) as compressed, receiver(compressed) as listener:
        (compressed.run / "www" / "long.txt").write_text("ready\n" * 1000)
        headers = {"Accept-Encoding": "gzip"}
        with compressed.open("/events", headers=headers) as client:
            with Delivery(listener) as delivery:
                delivery.client.sendall(b"plain text")
            answer = parse_answer(read_to_end(client))
        assert answer.header("Content-Encoding") is None
        assert answer.body == b"plain text"
        ready = ask(compressed.port, "/long.txt", headers=headers)
        assert ready.header("Content-Encoding") == "gzip"

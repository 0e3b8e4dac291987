"""Makes the seeds, which are committed: ``python -m tests.fuzz.seeds``.

One file for each situation, named after it, with the package's own codec.
"""

from __future__ import annotations

from collections.abc import Mapping

from fcgi_app.codec.constants import RecordType, Role
from fcgi_app.codec.params import build_params
from fcgi_app.codec.records import build_begin_request, build_record, build_stream

from . import SEEDS

__all__ = ["SITUATIONS", "main"]

Pairs = list[tuple[bytes, bytes]]

NGINX: Pairs = [
    (b"QUERY_STRING", b"a=b&c=d"),
    (b"REQUEST_METHOD", b"GET"),
    (b"CONTENT_TYPE", b""),
    (b"CONTENT_LENGTH", b""),
    (b"REQUEST_URI", b"/page?a=b&c=d"),
    (b"SERVER_PROTOCOL", b"HTTP/1.1"),
    (b"REMOTE_ADDR", b"192.0.2.1"),
    (b"HTTP_COOKIE", b"c" * 130),
]


def request(
    pairs: Pairs,
    request_id: int = 1,
    *,
    keep: bool = True,
    role: int = Role.RESPONDER,
    padding: int = 0,
    body: bytes = b"",
) -> bytes:
    """A request, with padding behind PARAMS."""
    content = build_params(pairs)
    params = bytearray(build_record(RecordType.PARAMS, request_id, content))
    del params[8 + len(content) :]
    params[6] = padding
    return (
        build_begin_request(request_id, role, keep_conn=keep)
        + bytes(params)
        + bytes(padding)
        + build_record(RecordType.PARAMS, request_id)
        + build_stream(RecordType.STDIN, request_id, body, end=True)
    )


def _params() -> dict[str, bytes]:
    plain = build_params(NGINX)
    return {
        "empty": b"",
        "nginx": plain,
        "name-twice": build_params([(b"A", b"1"), (b"A", b"2")]),
        "empty-name-and-value": build_params([(b"", b"")]),
        "long-name": build_params([(b"A" * 128, b"x"), (b"A", b"y")]),
        "four-byte-length-of-one": b"\x80\0\0\x01\x80\0\0\x01Ax",
        "greatest-length": b"\x01\xff\xff\xff\xffA",
        "both-lengths-greatest": b"\xff" * 8,
        "length-cut-short": b"\x01\x01Ax\x80\0",
        "length-cut-shorter": b"\x01\x01Ax\x80\0\0",
        "value-one-short": b"\x01\x02Ax",
        "name-one-short": b"\x02\0A",
        "nul-in-value": build_params([(b"A", b"a\0b")]),
        "nul-in-name": build_params([(b"A\0", b"x")]),
    }


def _whole() -> dict[str, bytes]:
    plain = request(NGINX)
    return {
        "nginx": plain,
        "not-kept": request(NGINX, keep=False),
        "greatest-id": request(NGINX, 65535),
        "id-of-nobody": request(NGINX, 0),
        "padding": request(NGINX, padding=7),
        "most-padding": request(NGINX, padding=255),
        "authorizer": request(NGINX, role=Role.AUTHORIZER),
        "body": request(NGINX, body=b"body"),
        "body-cut": request(NGINX, body=b"body")[:-10],
        "body-without-end": request(NGINX, body=b"body")[:-8],
        "two-records-of-body": request(NGINX)[:-8]
        + build_record(RecordType.STDIN, 1, b"one")
        + build_stream(RecordType.STDIN, 1, b"two", end=True),
        "padded-body": request(NGINX)[:-8]
        + build_record(RecordType.STDIN, 1, b"body", 4)
        + build_record(RecordType.STDIN, 1),
        "body-of-another": request(NGINX)[:-8]
        + build_record(RecordType.STDIN, 2, b"body")
        + build_record(RecordType.STDIN, 1),
        "two-requests": plain + request(NGINX, 2),
        "one-byte-missing": plain[:-1],
        "one-byte-more": plain + b"\x01",
        "another-id-at-the-end": plain[:-6] + b"\0\x02" + plain[-4:],
        "padding-at-the-end": plain[:-2] + b"\x01\0",
        "only-begin-request": plain[:16],
        "empty-params": plain[:16] + plain[-16:],
        "nothing": b"",
    }


_LEARN, _SHOW, _SHOW_USUAL = b"\0", b"\x02", b"\x03"
_RESTORE, _FORGET, _SPOIL = b"\x04", b"\x05", b"\x06"


def _input(left: int, skip: int, *records: bytes) -> bytes:
    return left.to_bytes(2, "big") + bytes([skip, 1]) + b"".join(records)


def _body() -> dict[str, bytes]:
    one = build_record(RecordType.STDIN, 1, b"one more")
    padded = build_record(RecordType.STDIN, 1, b"padded", 2)
    end = build_record(RecordType.STDIN, 1, b"")
    return {
        "rest-of-a-record": _input(4, 0, b"rest"),
        "less-than-the-rest": _input(9, 3, b"rest"),
        "rest-and-padding": _input(4, 4, b"rest", bytes(4)),
        "padding-cut": _input(4, 9, b"rest", bytes(4)),
        "records-behind": _input(4, 0, b"rest", one, padded, one),
        "end-of-the-stream": _input(4, 0, b"rest", one, end),
        "end-with-padding": _input(0, 0, build_record(RecordType.STDIN, 1, b"", 8)),
        "header-cut": _input(4, 0, b"rest", one, one[:7]),
        "header-only": _input(4, 0, b"rest", one[:8]),
        "content-cut": _input(4, 0, b"rest", one, padded[:11]),
        "another-request": _input(4, 0, b"rest", build_record(5, 2, b"other"), one),
        "another-type": _input(4, 0, b"rest", build_record(8, 1, b"data"), one),
        "another-version": _input(4, 0, b"rest", b"\2" + one[1:]),
        "greatest-record": _input(0, 0, build_record(5, 1, b"x" * 65535, 255)[:300]),
        "nothing": _input(0, 0),
    }


def _listed(step: bytes, content: bytes, flags: bytes | None = None) -> bytes:
    given = b"" if flags is None else bytes([len(flags)]) + flags
    return step + len(content).to_bytes(2, "big") + content + given


def _changed(method: str, length: str = "") -> Pairs:
    """The pairs of NGINX with another method or length."""
    changes = {b"REQUEST_METHOD": method.encode(), b"CONTENT_LENGTH": length.encode()}
    return [(name, changes.get(name, value)) for name, value in NGINX]


def _environ() -> dict[str, bytes]:
    plain = build_params(NGINX)
    short = build_params([(b"A", b"1"), (b"B", b"")])
    other = build_params([(b"A", b"a longer value"), (b"B", b"b")])
    many = build_params([(b"N%d" % n, b"") for n in range(140)])
    two = build_params([(b"CONTENT_LENGTH", b""), (b"CONTENT_LENGTH", b"0")])
    learn = _listed(_LEARN, plain, b"")
    return {
        "learn-show-restore": learn + _listed(_SHOW, plain) + _RESTORE,
        "usual": learn + _listed(_SHOW_USUAL, plain),
        "usual-after-another": learn
        + _listed(_SHOW, plain)
        + _listed(_SHOW_USUAL, plain),
        "usual-but-of-others": learn + _listed(_SHOW_USUAL, short),
        "usual-head": learn + _listed(_SHOW_USUAL, build_params(_changed("HEAD"))),
        "usual-with-body": learn
        + _listed(_SHOW_USUAL, build_params(_changed("GET", "1"))),
        "usual-with-its-body": learn
        + _listed(_SHOW_USUAL, build_params(_changed("POST", "12"))),
        "usual-two-lengths": _listed(_LEARN, two, b"") + _listed(_SHOW_USUAL, two),
        "never-learnt": _listed(_SHOW, plain),
        "other-values": _listed(_LEARN, short, b"") + _listed(_SHOW, other),
        "some-hidden": _listed(_LEARN, short, b"\x7e\x01"),
        "all-hidden": _listed(_LEARN, short, b"\0\0"),
        "learnt-twice": _listed(_LEARN, short, b"\x01") * 2 + _listed(_SHOW, other),
        "forgotten": learn + _FORGET + _listed(_SHOW, plain),
        "more-than-may-be-known": b"".join(
            _listed(_LEARN, build_params([(b"N%d" % n, b"")]), b"") for n in range(34)
        ),
        "spoilt": learn + _SPOIL + _listed(_SHOW, plain) + _SPOIL + _RESTORE,
        "process-spoilt": _RESTORE + _SPOIL + _RESTORE,
        "malformed": _listed(_LEARN, b"\x02\x02A", b"") + _listed(_SHOW, b"\x02"),
        "nul-in-value": _listed(_LEARN, build_params([(b"A", b"\0")]), b""),
        "no-params": _listed(_LEARN, b"", b"") + _listed(_SHOW, b""),
        "many-params": _listed(_LEARN, many, b"") + _listed(_SHOW, many),
        "odd-names": _listed(_LEARN, build_params([(b"", b"x"), (b"=", b"y")]), b""),
    }


_PLAIN = b"\0"
_CONNECT, _BYTES, _REQUEST, _CLOSE, _SHUT, _NEXT, _ANSWER, _RELEASE, _ADOPT = (
    bytes([number]) for number in (0, 1, 2, 4, 5, 6, 8, 10, 11)
)
_OLDEST, _LIMIT, _DRAIN, _SEND_LIMIT, _RECV_LIMIT, _CHANGE, _POST = (
    bytes([number]) for number in (12, 13, 14, 15, 16, 17, 18)
)


def _asked(client: int, how: int) -> bytes:
    return _REQUEST + bytes([client, how]) + _NEXT + b"\0"


def _stepped(client: int, how: int) -> bytes:
    return _REQUEST + bytes([client, how]) + _NEXT + b"\x02"


_PADDED = [padding << 5 | 5 for padding in range(8)]


def _posted(client: int, how: int, body: int, looks: bytes = b"\0") -> bytes:
    posted = _POST + bytes([client, how, body]) + _NEXT + looks
    return posted + _ANSWER + b"\x02" + _DRAIN + bytes([client])


def _changed_length(request: bytes) -> bytes:
    """A request with keep-connection, whose first param runs past the end."""
    return request[:10] + b"\1" + request[11:24] + b"\x7f" + request[25:]


def _sent(client: int, content: bytes) -> bytes:
    return _BYTES + bytes([client, len(content)]) + content


def _lane() -> dict[str, bytes]:
    get = request([(b"REQUEST_METHOD", b"GET")])
    taken = _PLAIN + _CONNECT + b"\0"
    kept = _PLAIN + _asked(0, 1) + _ANSWER + b"\x02"
    cut = _SEND_LIMIT + b"\x05" + _asked(0, 1) + _ANSWER
    return {
        "kept": kept + _DRAIN + b"\0" + _asked(0, 9) + _ANSWER + b"\x01",
        "not-kept": _PLAIN + _asked(0, 0) + _ANSWER + b"\x02" + _DRAIN + b"\0",
        "head": _PLAIN + _asked(0, 3) + _ANSWER + b"\0",
        "body-is-missing": _PLAIN + _asked(0, 7) + _RELEASE + b"\0",
        "six-clients": _PLAIN
        + b"".join(_asked(client, 1) + _ANSWER + b"\x02" for client in range(6))
        + _OLDEST
        + b"\0",
        "cut-in-two": taken + _sent(0, get[:30]) + _NEXT + b"\0" + _RELEASE + b"\0",
        "two-in-one-piece": taken + _sent(0, get + get) + _NEXT + b"\0",
        "any-bytes": taken + _sent(0, b"GET / HTTP/1.0\r\n\r\n") + _NEXT + b"\0",
        "nothing-comes": taken + _NEXT + b"\0" + _RELEASE + b"\0" + _ADOPT + b"\0",
        "gone-before-the-answer": _PLAIN
        + _asked(0, 1)
        + _CLOSE
        + b"\0"
        + _ANSWER
        + b"\x02"
        + _RELEASE
        + b"\0",
        "shut-while-kept": kept + _SHUT + b"\0" + _NEXT + b"\0",
        "asked-again": _PLAIN + _asked(0, 1) + (_NEXT + b"\0") * 2 + _ANSWER + b"\0",
        "sent-in-part": _PLAIN + cut + b"\x02",
        "sent-in-part-and-left": _PLAIN + cut + b"\x0a",
        "small-send-buffer": _PLAIN
        + _asked(0, 1)
        + _CHANGE
        + b"\0"
        + _ANSWER
        + b"\x06",
        "longest-answer": _PLAIN + _asked(0, 1) + _ANSWER + b"\x06" + _DRAIN + b"\0",
        "too-long-an-answer": _PLAIN + _asked(0, 1) + _ANSWER + b"\x07",
        "no-room-for-a-third": _PLAIN
        + _LIMIT
        + b"\x02"
        + b"".join(_asked(client, 1) + _ANSWER + b"\x01" for client in range(4)),
        "released-and-adopted": kept + _OLDEST + b"\0" + _ADOPT + b"\0" + _asked(0, 1),
        "received-byte-by-byte": _PLAIN + _RECV_LIMIT + b"\x01" + _asked(0, 1),
        "short-buffer": b"\x01" + _asked(0, 1) + _ANSWER + b"\x01",
        "too-many-params": b"\x02" + _sent(0, get) + _NEXT + b"\0",
        "not-listening": kept + _CHANGE + b"\x01" + _asked(1, 1) + _CHANGE + b"\x01",
        # A step learns names, shows them, and the next that is none looks itself.
        "step": _PLAIN + (_stepped(0, 1) + _ANSWER + b"\x02") * 3,
        "head-behind-a-step": _PLAIN
        + (_stepped(0, 1) + _ANSWER + b"\x02") * 3
        + _asked(0, 3)
        + _ANSWER
        + b"\0",
        "malformed-behind-a-step": _PLAIN
        + (_stepped(0, 1) + _ANSWER + b"\x02") * 3
        + _sent(0, _changed_length(get))
        + _NEXT
        + b"\0",
        "body": _PLAIN + _posted(0, 1, 7) + _posted(0, 7, 7) + _posted(1, 7, 31),
        "body-of-one-byte": _PLAIN + _posted(0, 1, 1),
        "body-behind-padding": _PLAIN + b"".join(_posted(0, 1, n) for n in _PADDED),
        "body-of-a-step": _PLAIN + (_posted(0, 1, 9, b"\x02")) * 3,
        "body-is-too-long": b"\x08" + _posted(0, 1, 3) + _posted(1, 1, 4),
        "busy": _PLAIN + _REQUEST + b"\0\x01" + (_NEXT + b"\x01") * 3,
    }


def _sending(*sizes: int, taken: int = 0xFE0000, failure: int = 0) -> bytes:
    first = bytes([1, 2]) + (
        bytes([255, failure, 0]) if failure else taken.to_bytes(3, "big")
    )
    return first + b"".join(size.to_bytes(3, "big") for size in sizes)


def _output() -> dict[str, bytes]:
    return {
        "nothing": _sending(),
        "empty-pieces": _sending(0, 0),
        "one-byte": _sending(1),
        "greatest-record": _sending(65535),
        "one-more": _sending(65536),
        "blocks": _sending(*[65536] * 8),
        "uneven": _sending(65520, 17, 0, 65528, 1, 130_000),
        "most": _sending(*[32768] * 32),
        "most-in-two": _sending(1, (1 << 20) - 1),
        "too-many": _sending(*[1] * 33),
        "too-long": _sending(1 << 20, 1),
        "in-part": _sending(70_000, 70_000, taken=65540),
        "nothing-taken": _sending(70_000, taken=0),
        "full": _sending(70_000, failure=11),
        "interrupted": _sending(70_000, failure=4),
        "gone": _sending(70_000, failure=32),
    }


SITUATIONS: Mapping[str, Mapping[str, bytes]] = {
    "params": _params(),
    "whole": _whole(),
    "body": _body(),
    "output": _output(),
    "environ": _environ(),
    "lane": _lane(),
}


def main() -> None:
    """Write all of them."""
    for target, situations in SITUATIONS.items():
        folder = SEEDS / target
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in situations.items():
            (folder / name).write_bytes(content)


if __name__ == "__main__":
    main()

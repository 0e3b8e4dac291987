"""PARAMS that are like the last ones: parsed faster, to the same result."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.codec.params import build_params, parse_params
from fcgi_app.errors import RemoteProtocolError
from fcgi_app.protocol import Connection, ParamsReceived, RecurringParams, StdinEnded
from fcgi_app.protocol.recurring import Pattern, find_pattern

from .webserver import GET, whole_request

Pairs = Sequence[tuple[bytes, bytes]]
USUAL: Pairs = [
    (b"QUERY_STRING", b"page=1"),
    (b"REQUEST_METHOD", b"GET"),
    (b"SCRIPT_NAME", b"/app"),
    (b"DOCUMENT_ROOT", b"/srv/" + b"d" * 200),
    (b"SERVER_NAME", b""),
    (b"REMOTE_PORT", b"51734"),
    (b"HTTP_ACCEPT", b"*/*"),
    (b"HTTP_COOKIE", b"c" * 300),
]


def changed(pairs: Pairs, **values: bytes) -> bytes:
    """These pairs with some other values, as a web server sends them."""
    new = {name.encode(): value for name, value in values.items()}
    return build_params([(name, new.get(name, value)) for name, value in pairs])


def learnt(*contents: bytes) -> RecurringParams:
    """One that has parsed these."""
    recurring = RecurringParams()
    for content in contents:
        recurring.parse(content)
    return recurring


def outcome(recurring: RecurringParams, content: bytes) -> object:
    """The params in their order, or what is wrong with them."""
    try:
        return [*recurring.parse(content)[0].items()]
    except RemoteProtocolError as error:
        return str(error)


def expected(content: bytes) -> object:
    """The same, by parsing pair after pair."""
    try:
        return [*dict(parse_params(content)).items()]
    except RemoteProtocolError as error:
        return str(error)


NAMES = [name for name, _ in USUAL] + [b"", b"FCGI_ROLE", b"HTTP_X", b"N" * 130]
VALUES = (
    st.sampled_from([b"", b"1", b"*/*", b"x" * 127, b"x" * 128, b"\x0bHTTP_COOKIE"])
    | st.binary(max_size=5)
    | st.sampled_from([value for _, value in USUAL])
)
PAIRS = st.lists(st.tuples(st.sampled_from(NAMES), VALUES), max_size=10)


@st.composite
def contents(draw: st.DrawFn) -> list[bytes]:
    """Lists with much in common, some of them cut or spoilt."""
    shapes = [USUAL, *draw(st.lists(PAIRS, max_size=2))]
    found: list[bytes] = []
    for _ in range(draw(st.integers(1, 12))):
        pairs = dict(enumerate(draw(st.sampled_from(shapes))))
        for at in draw(st.lists(st.integers(0, 9), max_size=3)):
            if at in pairs:
                pairs[at] = (pairs[at][0], draw(VALUES))
        content = build_params(pairs.values())
        harm = draw(st.sampled_from(["none"] * 6 + ["cut", "flip", "more"]))
        at = draw(st.integers(0, max(0, len(content) - 1)))
        if harm == "cut":
            content = content[:at]
        elif harm == "flip" and content:
            content = content[:at] + bytes([content[at] ^ 0x81]) + content[at + 1 :]
        elif harm == "more":
            content += draw(st.binary(max_size=4))
        found.append(content)
    return found


class TestRecurringParams:
    @given(contents())
    def test_any_params(self, lists: list[bytes]) -> None:
        """Whatever came before, the result is that of parsing pair after pair."""
        recurring = RecurringParams()
        for content in lists * 2:
            assert outcome(recurring, content) == expected(content)

    @given(contents())
    def test_pattern_stands_for_the_rest(self, lists: list[bytes]) -> None:
        """Params of the same pattern differ in the values that are told apart only."""
        recurring = RecurringParams()
        rests: dict[int, object] = {}
        patterns: list[object] = []  # kept, so that no two have the same number
        for content in lists * 2:
            try:
                params, varied = recurring.parse(content)
            except RemoteProtocolError:
                continue
            if varied is None:
                continue
            pattern, values = varied
            patterns.append(pattern)
            assert values == {name: params[name] for name in values}
            assert b"FCGI_ROLE" not in values
            rest = [(n, None if n in values else v) for n, v in params.items()]
            assert rests.setdefault(id(pattern), rest) == rest

    def test_varying_values(self) -> None:
        """The third list of a kind is told by what differs, the rest is known."""
        recurring = learnt(changed(USUAL), changed(USUAL, QUERY_STRING=b"page=2"))
        content = changed(USUAL, QUERY_STRING=b"q" * 500, HTTP_COOKIE=b"")
        params, varied = recurring.parse(content)
        assert [*params.items()] == parse_params(content)
        assert varied is not None
        assert varied[1] == {b"QUERY_STRING": b"q" * 500, b"HTTP_COOKIE": b""}

    def test_what_changes_later(self) -> None:
        """A param that was always the same may change: that is learnt, too."""
        recurring = learnt(*[changed(USUAL, REMOTE_PORT=b"%d" % n) for n in range(9)])
        for number in range(40):
            recurring.parse(changed(USUAL, SCRIPT_NAME=b"/%d" % number))
        content = changed(USUAL, SCRIPT_NAME=b"/new", REMOTE_PORT=b"7")
        params, varied = recurring.parse(content)
        assert [*params.items()] == parse_params(content)
        assert varied is not None
        assert varied[1].keys() == {b"REMOTE_PORT", b"SCRIPT_NAME", b"HTTP_COOKIE"}

    def test_other_kind_of_requests(self) -> None:
        """When requests have other names from now on, their pattern takes over."""
        recurring = learnt(*[changed(USUAL)] * 5)
        others = changed([*USUAL, (b"HTTP_DNT", b"1")])
        for _ in range(40):
            recurring.parse(others)
        assert recurring.parse(others)[1] is not None

    def test_odd_one_out(self) -> None:
        """Requests of another kind now and then do not displace a pattern."""
        recurring = learnt(*[changed(USUAL)] * 10)
        odd = changed([*USUAL, (b"HTTP_DNT", b"1")])
        for _ in range(100):
            assert recurring.parse(odd)[1] is None
            for _ in range(3):
                assert recurring.parse(changed(USUAL))[1] is not None

    def test_nothing_in_common(self) -> None:
        """Lists in which most changes have no pattern."""
        recurring = RecurringParams()
        for number in range(50):
            content = build_params([(b"N%d" % n, b"%d" % number) for n in range(20)])
            assert recurring.parse(content)[1] is None

    def test_result_is_the_callers(self) -> None:
        """What a caller does to its params is in nobody else's."""
        recurring = learnt(*[changed(USUAL)] * 3)
        params, varied = recurring.parse(changed(USUAL))
        assert varied is not None
        params[b"FCGI_ROLE"] = b"RESPONDER"
        del params[b"SERVER_NAME"]
        assert outcome(recurring, changed(USUAL)) == list(USUAL)

    def test_secrets_are_not_kept(self) -> None:
        """What a browser proves itself with is in no pattern, though it stays."""
        secret = [(b"HTTP_AUTHORIZATION", b"Basic secret"), (b"HTTP_COOKIE", b"secret")]
        recurring = learnt(*[changed([*USUAL[:-1], *secret])] * 10)
        assert recurring._pattern is not None
        assert "secret" not in repr(
            [getattr(recurring, n) for n in recurring.__slots__]
        )

    def test_long_lists_are_not_learnt(self) -> None:
        """A client that sends very much leaves nothing behind."""
        recurring = learnt(*[changed([*USUAL, (b"HTTP_X", b"x" * 9000)])] * 10)
        assert recurring._pattern is None
        assert recurring._before is None


class TestFindPattern:
    @pytest.mark.parametrize(
        "pairs",
        [
            [*USUAL, (b"HTTP_COOKIE", b"")],
            [(b"A" * 128, b"1"), *USUAL],
        ],
        ids=["name-twice", "long-name"],
    )
    def test_no_pattern(self, pairs: Pairs) -> None:
        """Where a step could go wrong there is none."""
        content = build_params(pairs)
        assert find_pattern(content, {pairs[0][0], b"HTTP_COOKIE"}) is None

    def test_lengths_of_four_bytes(self) -> None:
        """Lengths that are longer than they need to be (§3.4) are matched as sent."""
        long = b"\x01\x80\0\0\1A1" + b"\x80\0\0\1\1B2" + build_params(USUAL)
        pattern = find_pattern(long, {b"A"})
        assert isinstance(pattern, Pattern)
        assert pattern.match(long) == {b"A": b"1"}
        assert pattern.match(b"\1\1A2" + long[7:]) == {b"A": b"2"}


class TestConnections:
    def test_shared_by_connections(self) -> None:
        """What one connection has seen serves the next; each event is as ever."""
        recurring = RecurringParams()
        content = b""
        for number in range(5):
            connection = Connection(recurring=recurring)
            sent = [*USUAL[2:], (b"QUERY_STRING", b"%d" % number)]
            events = connection.receive_data(whole_request(pairs=sent))
            pairs = [*GET, *sent]
            content = build_params(pairs)
            state = events[0].request
            assert events == [
                ParamsReceived(state, dict(pairs), content),
                StdinEnded(state),
            ]
        assert recurring.parse(content)[1] is not None

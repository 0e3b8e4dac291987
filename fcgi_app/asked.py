"""What a web server asks: the params, and how much of the input has come."""

from __future__ import annotations

from collections.abc import Mapping
from os import fsdecode

from ._log import log_warning
from .body import InputBuffer
from .codec.constants import Role
from .codec.params import parse_params
from .errors import IncompleteData, RequestAborted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["Asked"]


class Asked:
    """The part of a ``Request`` that the web server has decided.

    ``Request`` sets every attribute, and says what the public ones are.

    Attributes:
        params_content: PARAMS as they came; None for CGI.
        params_list: the same with FCGI_ROLE as last pair, to be parsed when somebody
            looks at the params; None where they were parsed before.
        is_head: the method is HEAD, so that a body must not be sent.
    """

    role: int
    request_id: int
    params_content: bytes | None = None
    params_list: bytes | None = None
    is_head: bool
    _params_map: dict[bytes, bytes] | None
    _body: InputBuffer
    _data: InputBuffer | None = None
    _params: dict[str, str] | None = None
    _settings: Settings

    # Params

    @property
    def params_map(self) -> dict[bytes, bytes]:
        """The params as bytes, parsed when they are first looked at."""
        found = self._params_map
        if found is None:
            from .paramlist import parse_list  # only C gives lists

            assert self.params_list is not None
            found = self._params_map = parse_list(self.params_list)
        return found

    @property
    def params(self) -> Mapping[str, str]:
        """The params as text, decoded as os.environ is (undecodable: surrogates)."""
        if self._params is None:
            self._params = {
                fsdecode(name): fsdecode(value)
                for name, value in self.params_map.items()
            }
        return self._params

    @property
    def raw_params(self) -> list[tuple[bytes, bytes]]:
        """The params as pairs of bytes in wire order; names may repeat."""
        if self.params_list is not None:
            return parse_params(self.params_list)[:-1]
        if self.params_content is None:  # CGI has no wire
            return list(self.params_map.items())
        return parse_params(self.params_content)

    @property
    def owns_descriptors(self) -> bool:
        """Whether descriptors 0, 1 and 2 belong to the request while it runs."""
        return self._settings.descriptors

    def server_is(self, name: bytes) -> bool:
        """Whether SERVER_SOFTWARE names that web server (``nginx/1.22.1``)."""
        return self.params_map.get(b"SERVER_SOFTWARE", b"").startswith(name)

    @property
    def is_cgi(self) -> bool:
        """Whether this is the one request of a CGI program."""
        return self.request_id == 0

    @property
    def content_length(self) -> int | None:
        """CONTENT_LENGTH in bytes; None if it is absent, empty, -1 or no number."""
        return self._number(b"CONTENT_LENGTH")

    @property
    def data_length(self) -> int | None:
        """FCGI_DATA_LENGTH of a filter (§6.4), in bytes; None without one."""
        return self._number(b"FCGI_DATA_LENGTH")

    @property
    def data_last_mod(self) -> int | None:
        """FCGI_DATA_LAST_MOD of a filter (§6.4), seconds since 1970; None without."""
        return self._number(b"FCGI_DATA_LAST_MOD")

    def _number(self, name: bytes) -> int | None:
        text = self.params_map.get(name, b"").strip()
        return int(text) if text.isdigit() and len(text) < 20 else None

    # Input

    @property
    def incomplete(self) -> bool:
        """Whether the body ended before its end or short of CONTENT_LENGTH.

        The same of a filter's DATA. An authorizer has no body that could be short.
        """
        if self.role == Role.AUTHORIZER:
            return False
        short = _is_short(self._body, self.content_length)
        if self._data is not None:
            short = short or _is_short(self._data, self.data_length)
        return short

    def _input_ended(self) -> None:
        """Note the end of STDIN; a body that is not as announced goes to the log."""
        self._body.ended = True
        announced = self.content_length
        if announced is not None and announced != self._body.received:
            word = "shorter" if self._body.received < announced else "longer"
            log_warning(
                "%s: body of %d bytes is %s than CONTENT_LENGTH %d",
                self,
                self._body.received,
                word,
                announced,
            )

    @property
    def input_open(self) -> bool:
        """Whether the web server still owes input for this request."""
        if not self._body.ended:
            return True
        return self.role == Role.FILTER and not self._filter_input().ended

    def _filter_input(self) -> InputBuffer:
        if self._data is None:
            self._data = InputBuffer()
        return self._data

    def check_data(self) -> None:
        """Raise if DATA, which has ended, is not the whole file (§6.4).

        Half a file is never taken for the whole: it is told whoever asks for requests.

        Raises:
            RequestAborted: the web server aborted the request, or has gone.
            IncompleteData: there was less than FCGI_DATA_LENGTH.
        """
        data = self._filter_input()
        if data.cut:
            raise RequestAborted("the rest of DATA will never come")
        if _is_short(data, self.data_length):
            raise IncompleteData(
                f"DATA of {data.received} bytes is shorter than"
                f" FCGI_DATA_LENGTH {self.data_length}"
            )

    def __repr__(self) -> str:
        asked = self.params_map.get
        method = fsdecode(asked(b"REQUEST_METHOD", b"-"))
        uri = fsdecode(asked(b"REQUEST_URI") or asked(b"SCRIPT_NAME", b""))
        return f"<Request {self.request_id} {method} {uri[:200]!r}>"


def _is_short(buffer: InputBuffer, announced: int | None) -> bool:
    if announced is None:
        return buffer.cut
    return buffer.cut or (buffer.ended and buffer.received < announced)

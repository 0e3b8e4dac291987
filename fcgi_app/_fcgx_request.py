"""``FCGX_Request`` and its params, as fcgiapp.h has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

from ._fcgx_process import process
from ._fcgx_stream import FCGX_Stream

if TYPE_CHECKING:
    import socket

    from .request import Request

__all__ = ["FCGX_Accepted", "FCGX_ParamArray", "FCGX_Request"]


class FCGX_ParamArray(Sequence[str]):
    """The params of a request as ``"NAME=value"``; FCGI_ROLE is the first.

    Of a name that came twice the last value counts, and stands where the first did.
    """

    def __init__(self, params: Mapping[str, str]) -> None:
        self._params = params
        self._strings: list[str] = []

    def get(self, name: str) -> str | None:
        """Return the value of a param, None if there is none of that name."""
        return self._params.get(name)

    def _all(self) -> list[str]:
        if not self._strings:
            self._strings = ["FCGI_ROLE=" + self._params["FCGI_ROLE"]]
            for name, value in self._params.items():
                if name != "FCGI_ROLE":
                    self._strings.append(f"{name}={value}")
        return self._strings

    def __len__(self) -> int:
        return len(self._params)

    @overload
    def __getitem__(self, position: int) -> str: ...
    @overload
    def __getitem__(self, position: slice) -> list[str]: ...
    def __getitem__(self, position: int | slice) -> str | list[str]:
        return self._all()[position]


class FCGX_Request:
    """A request after the other, for one thread at a time (FCGX_InitRequest).

    Between ``FCGX_Accept_r`` and ``FCGX_Finish_r`` it holds a request. If nobody has a
    reference to it any more meanwhile, as after an exception in its thread, that is
    answered with 500, as far as no response has begun, and the log tells.

    Attributes:
        requestId: 1 to 65535; 0 in CGI, and without a request.
        role: 1, 2 or 3; 0 without a request.
        in_, out, err: its streams; None without a request.
        envp: its params; None without a request.
        request: the same as a ``Request``, with ``aborted`` and ``wait_aborted``;
            None without a request.
        listen_sock, flags: what ``FCGX_InitRequest`` was given.
    """

    __slots__ = (
        "__weakref__",
        "envp",
        "err",
        "flags",
        "in_",
        "listen_sock",
        "out",
        "request",
        "requestId",
        "role",
    )

    def __init__(self) -> None:
        self.listen_sock: int | socket.socket = 0
        self.flags = 0
        self.let_go()

    def let_go(self) -> None:
        """Have no request from now on."""
        self.request: Request | None = None
        self.requestId = 0
        self.role = 0
        self.in_: FCGX_Stream | None = None
        self.out: FCGX_Stream | None = None
        self.err: FCGX_Stream | None = None
        self.envp: FCGX_ParamArray | None = None

    def take(self, request: Request) -> None:
        """Have ``request`` from now on."""
        self.request = request
        self.requestId = request.request_id
        self.role = request.role
        self.in_ = FCGX_Stream(request, 0)
        self.out = FCGX_Stream(request, 1)
        self.err = FCGX_Stream(request, 2)
        self.envp = FCGX_ParamArray(request.params)

    def __repr__(self) -> str:
        return f"<FCGX_Request of {self.request!r}>"

    def __del__(self) -> None:
        """See to it that the web server is not left waiting."""
        if self.request is not None:
            process.abandon(self.request)


class FCGX_Accepted(NamedTuple):
    """What ``FCGX_Accept`` gives; all but ``result`` is None if that is negative."""

    result: int
    in_: FCGX_Stream | None
    out: FCGX_Stream | None
    err: FCGX_Stream | None
    envp: FCGX_ParamArray | None

"""What an authorizer answers (specification §6.3), and whom a client claims to be.

``Request.allow``, ``deny`` and ``challenge`` are the functions of this module. They
are of use to a responder as well: nginx (``auth_request``) and Caddy ask one.

An answer waits for the end of its request. Until then an exception makes a 500 of it,
which every web server takes for a refusal.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from os import fsdecode
from typing import TYPE_CHECKING, NamedTuple

from .codec.constants import Role
from .errors import CallSequenceError

if TYPE_CHECKING:
    from .request import Request

__all__ = ["Credentials", "allow", "challenge", "credentials", "deny"]

Headers = Mapping[str, str] | Iterable[tuple[str, str]]
"""Names and values; pairs where a name repeats (``Set-Cookie``)."""

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Credentials(NamedTuple):
    """A user name and a password in the clear, which nothing prints by accident."""

    user: str
    password: str

    def __repr__(self) -> str:
        """Show the user only: what is printed may end in a log."""
        return f"Credentials(user={self.user!r}, password=...)"


def allow(request: Request, variables: Mapping[str, str] | None = None) -> None:
    """Let the request pass: ``Status: 200`` and a ``Variable-NAME`` for each variable.

    There is no way to send other headers or a body: mod_authnz_fcgi hands the headers
    of a permission on to the client. Later output raises ``ValueError``.

    Args:
        request: an authorizer's; or a responder's, for nginx and Caddy.
        variables: the environment that the web server adds for what runs behind the
            authorizer. White space around a value is lost on the way.

    Raises:
        CallSequenceError: the answer has begun, or the request is a filter's.
        ValueError: a name that is none of a variable, or a value with control
            characters; nothing has been answered then.
    """
    if request.role == Role.FILTER:
        raise CallSequenceError("allow: a filter has nothing to allow")
    lines = ["Status: 200 OK"]
    for name, value in (variables or {}).items():
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"allow: {name!r} is no name of a variable")
        lines.append(f"Variable-{name}: {_checked(f'variable {name}', value)}")
    _answer(request, "allow", lines, "")


def deny(
    request: Request, status: int = 401, headers: Headers = (), text: str = ""
) -> None:
    """Refuse the request.

    What the client sees of it is the web server's choice: see fcgi_app-roles(7).
    Later output raises ``ValueError``.

    Args:
        request: of any role.
        status: 300 to 599.
        headers: more of them.
        text: the page; plain text, unless ``headers`` has a ``Content-Type``.

    Raises:
        CallSequenceError: the answer has begun.
        ValueError: a status out of range, or a header that is none; nothing has been
            answered then.
    """
    if not 300 <= status <= 599:
        raise ValueError(f"deny: status {status} is no refusal: not 300 to 599")
    pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
    lines = [f"Status: {status} {_reason(status)}".rstrip()]
    for name, value in pairs:
        if not _TOKEN.fullmatch(name) or name.lower() == "status":
            raise ValueError(f"deny: {name!r} is no name of a header for this")
        lines.append(f"{name}: {_checked(f'header {name}', value)}")
    if text and "content-type" not in {name.lower() for name, _ in pairs}:
        lines.append("Content-Type: text/plain; charset=utf-8")
    _answer(request, "deny", lines, text)


def challenge(request: Request, scheme: str, realm: str, **parameters: str) -> None:
    """Refuse with 401 and ask for credentials (``WWW-Authenticate``, RFC 9110 §11.6.1).

    Later output raises ``ValueError``.

    Args:
        request: of any role.
        scheme: such as ``Basic``.
        realm: what the browser shows to the user.
        parameters: more of them, such as ``charset="UTF-8"`` of Basic.

    Raises:
        CallSequenceError: the answer has begun.
        ValueError: a scheme or a parameter that could not be sent; nothing has been
            answered then.
    """
    for word in (scheme, *parameters):
        if not _TOKEN.fullmatch(word):
            raise ValueError(f"challenge: {word!r} is no scheme or parameter")
    texts = {"realm": realm, **parameters}
    quoted = ", ".join(f"{name}={_quoted(text)}" for name, text in texts.items())
    deny(request, 401, {"WWW-Authenticate": f"{scheme} {quoted}"})


def credentials(request: Request) -> Credentials | None:
    """Return the user and password that the client sent by Basic authentication.

    Apache's modules give them as REMOTE_USER and REMOTE_PASSWD, other web servers as
    the header itself. Undecodable bytes are surrogates, as in ``request.params``.

    Returns:
        None if there are none, they are malformed or of another scheme, or the web
        server keeps the password to itself (mod_authnz_fcgi's AUTHORIZER).
    """
    asked = request.params_map
    user, password = asked.get(b"REMOTE_USER"), asked.get(b"REMOTE_PASSWD")
    if user is not None and password is not None:
        return Credentials(fsdecode(user), fsdecode(password))
    scheme, _, encoded = asked.get(b"HTTP_AUTHORIZATION", b"").partition(b" ")
    if scheme.lower() != b"basic":
        return None
    try:
        name, colon, rest = b64decode(encoded.strip(), validate=True).partition(b":")
    except NotBase64:
        return None
    return Credentials(fsdecode(name), fsdecode(rest)) if colon else None


def _reason(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:  # one that the standard library does not know
        return ""


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _checked(what: str, value: str) -> str:
    """Return ``value``, which must not end its header field and begin another."""
    if _CONTROL.search(value):
        raise ValueError(f"{what}: control character in {value!r}")
    return value


def _answer(request: Request, what: str, lines: list[str], text: str) -> None:
    """Make this the whole response; it is sent with the end of the request."""
    response = request.response
    begun = response.head_sent or response._head is not None or response._parts
    if response.closed or begun:
        raise CallSequenceError(f"{what}: the answer to {request} has begun already")
    # As params are decoded, so that a value that came in goes out as it was.
    response.write("\r\n".join((*lines, "", text)).encode("utf-8", "surrogateescape"))
    # Not by close(), which would send it: an exception still makes a 500 of it.
    response.closed = True

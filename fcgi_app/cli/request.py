"""The subcommand ``fcgi-app request``: curl for FastCGI."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

import click

from .._version import __version__
from ..client import DEFAULT_TIMEOUT, Client, ExitStatus, build_cgi_params
from ..client.cgiparams import header_param
from ..codec.constants import Role
from ..inherited import plug_standard_descriptors
from .requesting import Asking, Content, Output, read_content

__all__ = ["request"]

_ROLES = {role.name.lower(): role for role in Role}
_FORM = "application/x-www-form-urlencoded"


def _parse_headers(words: Iterable[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Give the headers to send, and the names of those that are not to be sent."""
    headers: list[tuple[str, str]] = []
    without: list[str] = []
    for word in words:
        name, colon, value = word.partition(":")
        if not colon and name.endswith(";"):  # curl's way to send an empty one
            headers.append((name[:-1], ""))
        elif not colon:
            raise click.BadParameter(
                f"{word!r} is not NAME: VALUE.", param_hint="'--header'"
            )
        elif value.strip():
            headers.append((name.strip(), value.strip()))
        else:
            without.append(name.strip())
    return headers, without


def _parse_pairs(
    ctx: click.Context, param: click.Parameter, words: tuple[str, ...]
) -> list[tuple[str, str]]:
    pairs = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{word!r} is not NAME=VALUE.")
        pairs.append((name, value))
    return pairs


def _only_one(
    ctx: click.Context, param: click.Parameter, words: tuple[str, ...]
) -> str | None:
    if len(words) > 1:
        raise click.BadParameter("can be given only once.")
    return words[0] if words else None


@click.command(short_help="Send a request to a FastCGI program.")
@click.argument("address")
@click.argument("uri", default="/")
@click.option(
    "-X", "--method", metavar="METHOD", help="GET, or POST with --data, if not given."
)
@click.option(
    "-d",
    "--data",
    metavar="DATA",
    multiple=True,
    callback=_only_one,
    help="The body: this text, @FILE, or - for standard input.",
)
@click.option(
    "-H",
    "--header",
    "header_words",
    metavar="HEADER",
    multiple=True,
    help="A header, 'NAME: VALUE'; 'NAME:' takes away one that would be sent. Can be "
    "given more than once.",
)
@click.option(
    "-p",
    "--param",
    "pairs",
    metavar="NAME=VALUE",
    multiple=True,
    callback=_parse_pairs,
    help="A param, in place of one that would be sent. Can be given more than once.",
)
@click.option(
    "--role",
    type=click.Choice(list(_ROLES)),
    default="responder",
    show_default=True,
    help="What the application is asked to be.",
)
@click.option(
    "--filter-data",
    metavar="FILE",
    help="The file that a filter gets; - for standard input.",
)
@click.option("--script", metavar="FILE", help="SCRIPT_FILENAME.")
@click.option(
    "--document-root",
    metavar="DIRECTORY",
    help="DOCUMENT_ROOT; the directory of --script, or the current one, if not given.",
)
@click.option(
    "--mount",
    metavar="PATH",
    help="The part of the path that is SCRIPT_NAME; what follows is PATH_INFO.",
)
@click.option("-i", "--include", is_flag=True, help="Show the head of the answer, too.")
@click.option("-o", "--output", metavar="FILE", help="Write the answer to this file.")
@click.option(
    "-f",
    "--fail",
    "fails",
    is_flag=True,
    help=f"Show no answer of HTTP status 400 or more; exit status "
    f"{ExitStatus.HTTP_ERROR:d}.",
)
@click.option(
    "--repeat",
    metavar="NUMBER",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Send the request so often, on one connection if the application keeps it.",
)
@click.option(
    "--new-connection", is_flag=True, help="Make a connection for each request."
)
@click.option(
    "--time", "timed", is_flag=True, help="Show how long it took on standard error."
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0, 1e6),
    default=DEFAULT_TIMEOUT,
    show_default=True,
    help="How long nothing may move; 0: for ever.",
)
def request(
    address: str,
    uri: str,
    method: str | None,
    data: str | None,
    header_words: tuple[str, ...],
    pairs: list[tuple[str, str]],
    role: str,
    filter_data: str | None,
    script: str | None,
    document_root: str | None,
    mount: str | None,
    include: bool,
    output: str | None,
    fails: bool,
    repeat: int,
    new_connection: bool,
    timed: bool,
    timeout: float,
) -> int:
    """Send a request for URI to the FastCGI program that listens on ADDRESS.

    ADDRESS is unix:PATH, /PATH, @NAME, HOST:PORT or [IPV6]:PORT. URI is a path with a
    query, or a whole URL; / if not given.

    The body of the answer goes to standard output, the application's standard error to
    standard error. The exit status is that of the application.
    """
    plug_standard_descriptors()  # or a socket would become one of them
    if (filter_data is not None) != (_ROLES[role] is Role.FILTER):
        raise click.UsageError("--role filter and --filter-data belong together.")
    if data in ("-", "@-") and filter_data == "-":
        raise click.UsageError("--data and --filter-data both read standard input.")
    headers, without = _parse_headers(header_words)
    with ExitStack() as stack:
        body = _read_body(data, stack)
        content = _read("--filter-data", filter_data, stack)
        params = build_cgi_params(
            uri,
            method=method or ("GET" if body is None else "POST"),
            headers=_usual_headers(headers, body) + headers,
            body_length=None if body is None else body.size,
            script=script,
            document_root=document_root,
            mount=mount,
        )
        if content is not None:
            params["FCGI_DATA_LENGTH"] = str(content.size)
            params["FCGI_DATA_LAST_MOD"] = str(content.changed)
        for name in without:
            params.pop(header_param(name), None)
        params.update(pairs)
        asking = Asking(
            stack.enter_context(
                Client(
                    address,
                    keep_conn=repeat > 1 and not new_connection,
                    timeout=timeout or None,
                )
            ),
            params,
            _ROLES[role],
            body or Content(b"", 0),
            content,
            stack.enter_context(Output(output)),
            include,
            fails,
        )
        return asking.run(repeat, timed=timed)


def _usual_headers(
    headers: list[tuple[str, str]], body: Content | None
) -> list[tuple[str, str]]:
    """Give what is sent besides ``headers``, unless it is among them."""
    usual = [("User-Agent", f"fcgi-app/{__version__}"), ("Accept", "*/*")]
    if body is not None:
        usual.append(("Content-Type", _FORM))
    given = {name.lower() for name, _ in headers}
    return [(name, value) for name, value in usual if name.lower() not in given]


def _read_body(data: str | None, stack: ExitStack) -> Content | None:
    if data is None or data == "-" or data.startswith("@"):
        path = data.removeprefix("@") if data else data
        return _read("--data", path, stack)
    content = data.encode("utf-8", "surrogateescape")
    return Content(content, len(content))


def _read(option: str, path: str | None, stack: ExitStack) -> Content | None:
    if path is None:
        return None
    try:
        return read_content(path, stack)
    except OSError as error:
        raise click.BadParameter(
            f"{path}: {error.strerror}", param_hint=f"'{option}'"
        ) from None

"""Run a FastCGI script or a handler in a test, and ask it as a web server does.

::

    from fcgi_app.testing import run_script

    with run_script("hello.py") as app:
        answer = app.get("/?name=World")
        assert answer.status == 200
        assert answer.text == "Hello World\\n"

With pytest there is a fixture that does it, see `fcgi_app.testing.plugin`. Nothing in
here needs pytest.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, overload

from .. import following
from ..calling import Handler
from ..client import AnswerError, Body, Client, Response, build_cgi_params, request
from ..codec.constants import Role
from ..errors import ConfigError, WorkerError
from ..launcher.command import find_pool_command
from ..launcher.dev.script import script_environment
from ..launcher.workers import Worker, spawn, stop
from ..server import Server
from ..sockets import open_socket

__all__ = [
    "DEFAULT_TIMEOUT",
    "Application",
    "HandlerApplication",
    "ScriptApplication",
    "Start",
    "run_handler",
    "run_script",
]

DEFAULT_TIMEOUT = 20.0
"""Seconds in which something has to move: a test must not hang."""
END_SECONDS = 1.0
"""How long the end of a process may follow that of its connections."""
_LONGEST_FOLDER = 80
"""Bytes of a directory that leave room for a socket's name (unix(7): 108 in all)."""

Headers = Mapping[str, str] | Iterable[tuple[str, str]]


class Application:
    """A running application, and what asks it. `run_script`, `run_handler` make one.

    Attributes:
        address: where it listens: a Unix socket in a directory of its own.
        timeout: seconds without progress after which a request fails.
    """

    def __init__(self, address: str, timeout: float) -> None:
        self.address = address
        self.timeout = timeout

    def get(self, uri: str = "/", **options: Any) -> Response:
        """Send a GET request; arguments and errors: `request`."""
        return self.request(uri, method="GET", **options)

    def post(self, uri: str = "/", body: Body = b"", **options: Any) -> Response:
        """Send a POST request; arguments and errors: `request`."""
        return self.request(uri, method="POST", body=body, **options)

    def request(
        self,
        uri: str = "/",
        *,
        method: str = "GET",
        headers: Headers = (),
        form: Mapping[str, str] | None = None,
        body: Body = b"",
        params: Mapping[str, str] | None = None,
        mount: str = "",
        role: int = Role.RESPONDER,
        data: Body | None = None,
    ) -> Response:
        """Send a request and give the answer.

        Args:
            uri: path and query, or a whole URL.
            method: REQUEST_METHOD.
            headers: of the request; they become ``HTTP_*`` and CONTENT_TYPE.
            form: fields of a form: makes the body, a POST of a GET, and the type
                if ``headers`` have none.
            body: of the request. CONTENT_LENGTH is sent if it is bytes.
            params: more params, in place of those that the arguments above make.
            mount: SCRIPT_NAME, which the path of the URI begins with; the rest of the
                path is PATH_INFO.
            role: a `Role`.
            data: of a filter; send FCGI_DATA_LENGTH in ``params``.

        Raises:
            WorkerError: the script's process has ended; the message says what it
                printed.
            AnswerError: the answer is malformed or cut off.
            TimeoutError: the application does not go on.
            OSError: it cannot be reached.
            ConfigError: the URI or a header is malformed, or there is a body besides
                the form.
        """
        given = list(headers.items() if isinstance(headers, Mapping) else headers)
        if form is not None:
            from urllib.parse import urlencode

            if body != b"":
                raise ConfigError("form", form, "leaves no room for another body")
            body = urlencode(form).encode()
            if not any(name.lower() == "content-type" for name, _ in given):
                given.append(("Content-Type", "application/x-www-form-urlencoded"))
            method = "POST" if method == "GET" else method
        length = 0
        if isinstance(body, (bytes, bytearray, memoryview)):
            length = memoryview(body).nbytes
        variables = build_cgi_params(
            uri,
            method=method,
            headers=given,
            body_length=length or None,
            mount=mount,
        )
        self._prepare()
        try:
            return request(
                self.address,
                {**variables, **(params or {})},
                stdin=body,
                role=role,
                data=data,
                timeout=self.timeout,
            )
        except (AnswerError, ConnectionError, FileNotFoundError) as error:
            self._explain(error)
            raise

    def client(self, *, keep_conn: bool = False) -> Client:
        """Give a `Client` for it, which streams, keeps its connection, and aborts."""
        self._prepare()
        return Client(self.address, keep_conn=keep_conn, timeout=self.timeout)

    def _prepare(self) -> None:
        """Do what is needed before a request."""

    def _explain(self, error: Exception) -> None:
        """Raise a better error, if there is one."""


class ScriptApplication(Application):
    """A script that runs as a FastCGI process.

    Attributes:
        log_path: the file with what the process prints itself, outside of requests.
    """

    def __init__(
        self, address: str, timeout: float, worker: Worker, log_path: str
    ) -> None:
        super().__init__(address, timeout)
        self.log_path = log_path
        self._worker = worker

    @property
    def pid(self) -> int:
        """The process id."""
        return self._worker.pid

    @property
    def log(self) -> str:
        """What the process has printed so far on its own standard output and error."""
        with open(self.log_path, encoding="utf-8", errors="replace") as log:
            return log.read()

    def stop(self) -> int:
        """Send SIGTERM, and give the exit status; negative: ended by that signal."""
        stop([self._worker])
        status = self._worker.poll()
        assert status is not None
        return status

    def _explain(self, error: Exception) -> None:
        status = self._worker.wait(END_SECONDS)
        if status is not None:
            how = f"exit status {status}" if status >= 0 else f"signal {-status}"
            printed = self.log.rstrip() or "(nothing)"
            program = " ".join(self._worker.command)
            raise WorkerError(
                f"{program} has ended with {how}; it printed:\n{printed}"
            ) from error


class HandlerApplication(Application):
    """A handler that a `fcgi_app.Server` in this process calls.

    Attributes:
        server: the running server.
    """

    def __init__(self, server: Server, timeout: float) -> None:
        super().__init__(server.address, timeout)
        self.server = server

    def _prepare(self) -> None:
        # pytest sets sys.stdout anew between the setup of a test and the test.
        following.renew()


@contextmanager
def run_script(
    script: str | os.PathLike[str],
    *arguments: str,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> Iterator[ScriptApplication]:
    """Run a FastCGI program, with a listening socket on descriptor 0, until the end.

    Args:
        script: path of a Python script, which this interpreter runs and which needs no
            execute bit, or of any executable program.
        arguments: for the script.
        env: variables besides those of this process.
        cwd: working directory; the current one if not given.
        timeout: seconds without progress after which a request fails.

    Raises:
        AppLoadError: there is no such script, or it cannot be run.
        WorkerError: it cannot be executed.
    """
    command = find_pool_command(
        [os.path.abspath(script), *arguments],
        directory=os.getcwd(),
        path=os.environ.get("PATH", os.defpath),
    )
    with ExitStack() as stack:
        folder = _folder(stack)
        log_path = f"{folder}/log"
        address = f"unix:{folder}/app.sock"
        with open(log_path, "wb") as log, open_socket(address) as listener:
            worker = spawn(
                command,
                listener,
                env={**script_environment(os.environ), **(env or {})},
                cwd=None if cwd is None else os.fspath(cwd),
                stdout=log.fileno(),
                stderr=subprocess.STDOUT,
                new_session=True,
                die_with_parent=True,
            )
        # The socket is the process's alone now: with its end, clients are refused.
        stack.callback(stop, [worker])
        yield ScriptApplication(address, timeout, worker, log_path)


@contextmanager
def run_handler(
    handler: Handler,
    *,
    threads: int = 1,
    timeout: float = DEFAULT_TIMEOUT,
    **settings: Any,
) -> Iterator[HandlerApplication]:
    """Serve requests by ``handler``, in threads of this process, until the end.

    Within it, what the test itself prints goes to standard error, see `Server`.

    Args:
        handler: as `fcgi_app.Server` takes it.
        threads: requests that are served at the same time.
        timeout: seconds without progress after which a request fails.
        settings: see `fcgi_app.Settings`.

    Raises:
        ConfigError: a setting is invalid.
    """
    with ExitStack() as stack:
        address = f"unix:{_folder(stack)}/app.sock"
        server = Server(address, handler, threads=threads, **settings)
        with server:
            yield HandlerApplication(server, timeout)


class Start(Protocol):
    """What the fixture `fastcgi` is: a function that starts an application."""

    @overload
    def __call__(
        self, target: str | os.PathLike[str], *arguments: str, **options: Any
    ) -> ScriptApplication: ...

    @overload
    def __call__(self, target: Handler, **options: Any) -> HandlerApplication: ...

    def __call__(self, target: Any, *arguments: str, **options: Any) -> Any:
        """Run a script, or serve by a handler, until the end of the test.

        Args:
            target: path of a script, which is relative to pytest's root directory; or
                a handler.
            arguments: for the script.
            options: see `run_script` and `run_handler`.
        """


def _folder(stack: ExitStack) -> str:
    """Make a temporary directory with a short name, which ``stack`` removes."""
    default = tempfile.gettempdir()
    short = len(os.fsencode(default)) <= _LONGEST_FOLDER
    return stack.enter_context(
        tempfile.TemporaryDirectory(
            prefix="fcgi-app-", dir=default if short else "/tmp"
        )
    )

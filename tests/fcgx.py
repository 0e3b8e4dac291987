"""Programs of fcgiapp that tests run, and how they are asked."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fcgi_app.codec.constants import Role

from .webserver import GET, PACKAGE_PARENT, Answer, App

PATIENCE = 20

# Does what CODE says, in the middle of a page.
PROGRAM = """
    import errno, os, sys
    from fcgi_app.fcgiapp import *
    def say(*values):
        FCGX_PutS(" ".join(map(repr, values)) + "\\n", r.out)
    FCGX_Init()
    r = FCGX_Request()
    FCGX_InitRequest(r, 0, 0)
    while (result := FCGX_Accept_r(r)) == 0:
        FCGX_PutS("Content-Type: text/plain\\r\\n\\r\\n", r.out)
        exec(FCGX_GetParam("CODE", r.envp) or "say('idle')")
    print("over", result, r.request, r.in_, r.out, r.err, r.envp, r.requestId)
"""
# The same in four threads, and the main thread waits for them.
THREADED = """
    import errno, os, sys, threading
    from fcgi_app.fcgiapp import *
    shared = {}
    lock = threading.Lock()
    def serve():
        r = FCGX_Request()
        FCGX_InitRequest(r, 0, 0)
        def say(*values):
            FCGX_PutS(" ".join(map(repr, values)) + "\\n", r.out)
        while FCGX_Accept_r(r) == 0:
            FCGX_PutS("Content-Type: text/plain\\r\\n\\r\\n", r.out)
            exec(FCGX_GetParam("CODE", r.envp) or "say('idle')",
                 {**globals(), "r": r, "say": say})
    FCGX_Init()
    threads = [threading.Thread(target=serve) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def code(text: str) -> tuple[str, str]:
    return "CODE", textwrap.dedent(text)


def run(app: App, text: str, body: bytes = b"", role: int = Role.RESPONDER) -> Answer:
    """Let the program run some code in a request."""
    return app.ask(code(text), body=body, role=role)


def value(app: App, expression: str, body: bytes = b"") -> Any:
    """What an expression is in a request; literals only."""
    return eval(run(app, f"say({expression})", body).body)


def pairs(text: str) -> list[tuple[bytes, bytes]]:
    name, value = code(text)
    return [*GET, (name.encode(), value.encode())]


def until(condition: Callable[[], object]) -> None:
    """Wait for what has no event to wait for."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def environment(extra: Mapping[str, str]) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "PYTHONPATH": PACKAGE_PARENT, **extra}


def run_as_cgi(
    tmp_path: Path, text: str, body: bytes = b"", **env: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a script of its own as a CGI program."""
    script = tmp_path / "script.py"
    script.write_text("from fcgi_app.fcgiapp import *\n" + textwrap.dedent(text))
    return subprocess.run(
        [sys.executable, str(script)],
        input=body,
        env=environment({"GATEWAY_INTERFACE": "CGI/1.1", **env}),
        capture_output=True,
        timeout=PATIENCE,
        check=False,
    )


@contextmanager
def own_process(
    tmp_path: Path, text: str, *arguments: str, **env: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a script with nothing on descriptor 0; it says on stdout what it does."""
    script = tmp_path / "script.py"
    script.write_text("from fcgi_app.fcgiapp import *\n" + textwrap.dedent(text))
    with subprocess.Popen(
        [sys.executable, str(script), *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(env),
        cwd=tmp_path,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()

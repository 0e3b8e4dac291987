"""The pytest fixture ``fastcgi``; importing this module needs pytest.

It is no part of a run of pytest until somebody asks for it, in ``conftest.py``::

    pytest_plugins = ["fcgi_app.testing.plugin"]

or by ``-p fcgi_app.testing.plugin``. Then a test reads like this::

    def test_hello(fastcgi):
        app = fastcgi("hello.py")
        assert app.get("/").status == 200
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from . import ScriptApplication, Start, run_handler, run_script

__all__ = ["fastcgi"]


@pytest.fixture
def fastcgi(request: pytest.FixtureRequest) -> Iterator[Start]:
    """Give a function that starts applications; they are stopped after the test.

    What a script has printed outside of requests is shown if the test fails.
    """
    with ExitStack() as stack:

        def start(target: Any, *arguments: str, **options: Any) -> Any:
            if callable(target):
                return stack.enter_context(run_handler(target, **options))
            script = os.path.join(request.config.rootpath, target)
            app = stack.enter_context(run_script(script, *arguments, **options))
            stack.callback(_show_log, app)
            return app

        yield start


def _show_log(app: ScriptApplication) -> None:
    app.stop()
    if log := app.log:
        sys.stderr.write(f"--- {app.address} printed:\n{log}")

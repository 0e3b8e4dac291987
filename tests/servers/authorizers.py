"""Web servers that ask an authorizer first: the program that decides, and another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .programs import EXAMPLES, MARKER, ExternalProgram, wrapper_script
from .ways import Setup, Site
from .webservers import Apache, Lighttpd, Nginx

__all__ = ["AUTHORIZER_SETUPS", "SECRET", "AuthorizerSite"]

AUTHORIZER_SETUPS: Mapping[str, Setup] = {
    "authnz-fcgi": Setup(Apache, "apache-authnz-fcgi.conf"),
    "fcgid-auth": Setup(Apache, "apache-fcgid-auth.conf", spawns=True),
    "lighttpd-authorizer": Setup(Lighttpd, "lighttpd-authorizer.conf", spawns=True),
    "nginx-auth-request": Setup(Nginx, "nginx-auth-request.conf"),
}

SECRET = "what is behind the authorizer\n"
"""The content of the files that are not for everybody."""


@dataclass
class AuthorizerSite(Site):
    """A script that decides, behind one setup, and one that answers.

    Attributes:
        responder: the one that answers.
    """

    responder: Path = EXAMPLES / "echo.py"

    def _start(self) -> None:
        setup = AUTHORIZER_SETUPS[self.setup_name]
        values = self.values
        environment = {MARKER: str(self.run), **self.environment}
        scripts = {"tcp": self.script, "unix": self.responder}
        for kind, script in scripts.items():
            listener = self._listen(kind, values)
            console = self.run / f"program-{kind}.log"
            self.programs[kind] = ExternalProgram(
                script, listener, console, environment
            )
        values |= {"AUTH_HOST": "127.0.0.1", "AUTH_PORT": values["APP_PORT"]}
        if setup.spawns:
            run = self.run
            values["AUTHCMD"] = wrapper_script(run / "auth", self.script, environment)
            values["CMD"] = wrapper_script(run / "app", self.responder, environment)
        self.server = setup.server(self.run, setup.template, values, setup.options)
        for name in ("a.txt", "private/a.txt", "spawned/a.txt", "app/x.py"):
            file = self.run / "www" / name
            file.parent.mkdir(exist_ok=True)
            file.write_text(SECRET)

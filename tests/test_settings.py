"""Settings: from the environment and from keywords, wrong ones told by name."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcgi_app.errors import ConfigError
from fcgi_app.protocol import Limits
from fcgi_app.settings import Settings

from .webserver import PACKAGE_PARENT, App

DEFAULTS = dict(vars(Settings()))
NAMES = {
    kind: [name for name, value in DEFAULTS.items() if type(value) is kind]
    for kind in (bool, int, float)
}
TEXTS = [name for name, value in DEFAULTS.items() if type(value) is str]
WRONG = {
    bool: ["2", "maybe", "-", "tru"],
    int: ["", "x", "-1", "1.5", "1e3", "0x10", "1 2", "inf"],
    float: ["", "x", "-0.1", "-1", "nan", "inf", "-inf", "1s", "1,5"],
}


def changes(name: str, value: object) -> dict[str, Any]:
    return {name: value}


def variable(name: str) -> str:
    return f"FCGI_APP_{name.upper()}"


class TestFromEnviron:
    def test_defaults(self) -> None:
        """Without a variable every setting has its default."""
        assert Settings.from_environ({}) == Settings()
        assert (
            Settings.from_environ({"FCGI_APPS_SPOOL": "x", "SPOOL": "x"}) == Settings()
        )

    @pytest.mark.parametrize("name", NAMES[int])
    def test_sizes(self, name: str) -> None:
        """Each size and number is read from its variable, white space trimmed."""
        found = Settings.from_environ({variable(name): " 12345\n"})
        assert found == Settings(**changes(name, 12345))

    @pytest.mark.parametrize("name", NAMES[float])
    def test_times(self, name: str) -> None:
        """Each time is read from its variable, in seconds, fractions allowed."""
        for text, value in (("0", 0.0), ("2.5", 2.5), ("1e3", 1000.0)):
            found = Settings.from_environ({variable(name): text})
            assert found == Settings(**changes(name, value))

    @pytest.mark.parametrize("name", NAMES[bool])
    def test_switches(self, name: str) -> None:
        """Each switch takes a yes or a no in the usual words."""
        for text in ("1", "true", "YES", " on "):
            found = Settings.from_environ({variable(name): text})
            assert found == Settings(**changes(name, True))
        for text in ("0", "False", "no", "off", ""):
            assert Settings.from_environ({variable(name): text}) == Settings()

    @pytest.mark.parametrize("name", TEXTS)
    def test_texts(self, name: str) -> None:
        """A text is taken as it is, white space and case as well."""
        found = Settings.from_environ({variable(name): " /Var/log "})
        assert found == Settings(**changes(name, " /Var/log "))

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            (name, text)
            for kind, names in NAMES.items()
            for name in names
            for text in WRONG[kind]
        ],
    )
    def test_wrong(self, name: str, text: str) -> None:
        """A wrong value is an error that names variable and value."""
        with pytest.raises(ConfigError) as caught:
            Settings.from_environ({variable(name): text})
        error = caught.value
        assert (error.setting, error.value) == (variable(name), text)
        assert str(error).startswith(f"{variable(name)}: {text!r}: must be ")

    @given(st.sampled_from(sorted(DEFAULTS)), st.text(max_size=8))
    def test_any_text(self, name: str, text: str) -> None:
        """Any text is either taken or told; taken numbers are 0 or more, and finite."""
        try:
            found = Settings.from_environ({variable(name): text})
        except ConfigError:
            return
        value = getattr(found, name)
        assert value == text if name in TEXTS else 0 <= value < float("inf")


class TestUnknownVariable:
    @pytest.mark.parametrize(
        ("given", "meant"),
        [
            ("FCGI_APP_KEEP_TIMOUT", "FCGI_APP_KEEP_TIMEOUT"),
            ("FCGI_APP_KEEPTIMEOUT", "FCGI_APP_KEEP_TIMEOUT"),
            ("FCGI_APP_BACKEN", "FCGI_APP_BACKEND"),
            ("FCGI_APP_OUTPUT_BUFFERS", "FCGI_APP_OUTPUT_BUFFER"),
        ],
    )
    def test_misspelt(
        self, caplog: pytest.LogCaptureFixture, given: str, meant: str
    ) -> None:
        """One warning names it and the name that was meant; it changes nothing."""
        assert Settings.from_environ({given: "7", "HOME": "/"}) == Settings()
        ((logger, level, message),) = caplog.record_tuples
        assert (logger, level) == ("fcgi_app", logging.WARNING)
        assert message == (
            f"'{given}' in the environment is no setting, and ignored;"
            f" did you mean {meant}?"
        )

    @pytest.mark.parametrize("name", ["FCGI_APP_", "FCGI_APP_XYZZY", "FCGI_APP_\n"])
    def test_nothing_near(self, caplog: pytest.LogCaptureFixture, name: str) -> None:
        """Where no name comes near there is no guess; control characters are shown."""
        assert Settings.from_environ({name: "7"}) == Settings()
        ((*_, message),) = caplog.record_tuples
        assert message == f"{name!r} in the environment is no setting, and ignored"

    def test_several(self, caplog: pytest.LogCaptureFixture) -> None:
        """Each has its line, beside what is set well."""
        environ = {"FCGI_APP_SPOL": "1", "FCGI_APP_SPOOL": "2", "FCGI_APP_MAX": "3"}
        assert Settings.from_environ(environ) == Settings(spool=2)
        assert [message.split()[0] for *_, message in caplog.record_tuples] == [
            "'FCGI_APP_MAX'",
            "'FCGI_APP_SPOL'",
        ]

    def test_wrong_value_beside_it(self, caplog: pytest.LogCaptureFixture) -> None:
        """A wrong value is an error all the same, and hides no misspelt name."""
        with pytest.raises(ConfigError, match="FCGI_APP_SPOOL"):
            Settings.from_environ({"FCGI_APP_SPOL": "1", "FCGI_APP_SPOOL": "x"})
        assert "did you mean FCGI_APP_SPOOL?" in caplog.text

    def test_known(self, caplog: pytest.LogCaptureFixture) -> None:
        """Nothing is said about a setting, nor about others' variables."""
        others = {"FCGI_FORCE_CGI": "0", "FCGI_APPS": "1", "MY_FCGI_APP_X": "1"}
        Settings.from_environ({variable(n): str(v) for n, v in DEFAULTS.items()})
        backend = {"FCGI_APP_BACKEND": "pure", "FCGI_APP_BUILD": "pure"}
        Settings.from_environ({**backend, **others})
        assert caplog.record_tuples == []

    def test_every_variable_of_the_package(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Each name that a module of the package mentions is known."""
        package = Path(PACKAGE_PARENT) / "fcgi_app"
        found = {
            name
            for module in package.rglob("*.py")
            for name in re.findall(
                r"(?<!_)FCGI_APP_[A-Z0-9_]+", module.read_text("utf-8")
            )
        }
        assert found >= {"FCGI_APP_BACKEND", "FCGI_APP_DESCRIPTORS"}
        Settings.from_environ(dict.fromkeys(found, "1"))
        assert caplog.record_tuples == []


class TestChanged:
    def test_several(self) -> None:
        """Settings are changed by name; a time may be a whole number."""
        changed = Settings().changed(read_ahead=0, keep_timeout=5, passthrough=True)
        assert changed == Settings(read_ahead=0, keep_timeout=5.0, passthrough=True)
        assert Settings().changed() == Settings()

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("read_ahaed", 1, "no such setting; there are .*'read_ahead'"),
            ("read_ahead", "1", "must be int"),
            ("read_ahead", 1.0, "must be int"),
            ("read_ahead", True, "must be int"),
            ("read_ahead", None, "must be int"),
            ("read_ahead", -1, "must be a number from 0 on"),
            ("keep_timeout", "1", "must be float"),
            ("keep_timeout", False, "must be float"),
            ("keep_timeout", -0.5, "must be a number from 0 on"),
            ("keep_timeout", float("nan"), "must be a number from 0 on"),
            ("keep_timeout", float("inf"), "must be a number from 0 on"),
            ("passthrough", 1, "must be bool"),
            ("passthrough", "yes", "must be bool"),
            ("access_log", 2, "must be str"),
        ],
    )
    def test_wrong(self, name: str, value: Any, reason: str) -> None:
        """An unknown name or a wrong value is an error that names both."""
        with pytest.raises(ConfigError, match=f"^{name}: .*{reason}") as caught:
            Settings().changed(**{name: value})
        assert repr(value) in str(caught.value)

    def test_is_a_value_error(self) -> None:
        """Who catches ValueError gets it too."""
        with pytest.raises(ValueError, match="spool"):
            Settings().changed(spool=-1)


def test_limits() -> None:
    """The protocol's share goes on to the protocol."""
    settings = Settings(max_params_bytes=10, max_params=20, max_requests=30)
    assert settings.limits == Limits(10, 20, 30)
    assert Settings().limits == Limits()


def program(code: str) -> str:
    """A script that runs ``code`` before its loop."""
    return f"""
        from fcgi_app import *
        {code}
        while accept():
            print("Content-Type: text/plain\\n\\nserved", end="")
    """


class TestInTheProcess:
    @pytest.mark.parametrize(
        ("name", "text"),
        [("spool", "much"), ("keep_timeout", "-1"), ("passthrough", "maybe")],
    )
    def test_wrong_variable(self, tmp_path: Path, name: str, text: str) -> None:
        """The program ends at its start, with 1, and the log says what is wrong."""
        with App(tmp_path, program(""), env={variable(name): text}) as app:
            assert app.wait() == 1
        assert f"ConfigError: {variable(name)}: {text!r}: must be" in app.log

    def test_misspelt_variable(self, tmp_path: Path) -> None:
        """The program serves, and its own log has one line about the name."""
        env = {"FCGI_APP_KEEP_TIMOUT": "5"}
        with App(tmp_path, program(""), env=env) as app:
            for _ in range(2):
                answer = app.ask()
                assert (answer.body, answer.stderr) == (b"served", b"")
            assert app.stop() == 0
        assert app.log == (
            "'FCGI_APP_KEEP_TIMOUT' in the environment is no setting, and ignored;"
            " did you mean FCGI_APP_KEEP_TIMEOUT?\n"
        )

    def test_misspelt_variable_in_cgi(self, tmp_path: Path) -> None:
        """In CGI the line goes to the web server's log, and never into the answer."""
        script = tmp_path / "app.py"
        script.write_text(
            "import fcgi_app\n"
            "while fcgi_app.accept():\n"
            "    print('Content-Type: text/plain\\n\\nserved')\n"
        )
        done = subprocess.run(
            [sys.executable, script],
            env={"PYTHONPATH": PACKAGE_PARENT, "FCGI_APP_DESCRIPTOR": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        assert done.stdout.endswith("\n\nserved\n")
        assert done.stderr.count("did you mean FCGI_APP_DESCRIPTORS?") == 1
        assert done.stderr.count("\n") == 1

    def test_configure_wins(self, tmp_path: Path) -> None:
        """What the script configures wins over the environment."""
        code = "configure(first_byte_timeout=0.1)"
        env = {"FCGI_APP_FIRST_BYTE_TIMEOUT": "50"}
        with App(tmp_path, program(code), env=env) as app, app.connect() as silent:
            assert silent.is_closed()
            assert app.ask().body == b"served"

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            ("configure(spool=-1)", "ConfigError: spool: -1: must be"),
            ("configure(spol=1)", "ConfigError: spol: 1: no such setting"),
            ("accept(timeout=0.01)", "TimeoutError: no request came within 0.01 s"),
        ],
    )
    def test_wrong_call(self, tmp_path: Path, code: str, error: str) -> None:
        """configure tells a mistake where it is made."""
        with App(tmp_path, program(code)) as app:
            assert app.wait() == 1
        assert error in app.log

    def test_configure_too_late(self, tmp_path: Path) -> None:
        """After the first accept nothing can be configured any more."""
        code = "is_cgi(); configure(spool=1)"
        with App(tmp_path, program(code)) as app:
            assert app.wait() == 1
        assert "CallSequenceError: configure: " in app.log

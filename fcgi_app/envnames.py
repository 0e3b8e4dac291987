"""Which names a param may bring into the environment, and which are a request's.

Nothing in here depends on a value.
"""

from __future__ import annotations

__all__ = ["INFO", "WARNING", "find_objection", "is_meta_variable"]

INFO, WARNING = 20, 30
"""Levels of ``logging``, which is loaded only when there is something to say."""

_META_VARIABLES = frozenset(
    # RFC 3875, section 4.1.
    b"AUTH_TYPE CONTENT_LENGTH CONTENT_TYPE GATEWAY_INTERFACE PATH_INFO"
    b" PATH_TRANSLATED QUERY_STRING REMOTE_ADDR REMOTE_HOST REMOTE_IDENT REMOTE_USER"
    b" REQUEST_METHOD SCRIPT_NAME SERVER_NAME SERVER_PORT SERVER_PROTOCOL"
    b" SERVER_SOFTWARE"
    # What nginx, Apache and lighttpd add to it.
    b" CONTEXT_DOCUMENT_ROOT CONTEXT_PREFIX DOCUMENT_ROOT DOCUMENT_URI HTTPS"
    b" ORIG_PATH_INFO ORIG_PATH_TRANSLATED ORIG_SCRIPT_FILENAME ORIG_SCRIPT_NAME"
    b" REMOTE_PORT REQUEST_SCHEME REQUEST_URI SCRIPT_FILENAME SCRIPT_URI SCRIPT_URL"
    b" SERVER_ADDR SERVER_ADMIN SERVER_SIGNATURE UNIQUE_ID"
    # Apache's mod_ssl. SSL_CERT_FILE and SSL_CERT_DIR are OpenSSL's: not in here.
    b" SSL_CIPHER SSL_COMPRESS_METHOD SSL_PROTOCOL SSL_SECURE_RENEG SSL_TLS_SNI"
    # Params of the protocol itself.
    b" FCGI_APACHE_ROLE FCGI_DATA_LAST_MOD FCGI_DATA_LENGTH FCGI_ROLE".split()
)
_META_PREFIXES = (
    b"HTTP_",
    b"REDIRECT_",
    b"SSL_CIPHER_",
    b"SSL_CLIENT_",
    b"SSL_SERVER_",
    b"SSL_SESSION_",
    b"SSL_VERSION_",
)
"""With ``_META_VARIABLES``: what describes a request, so that the process's own
(left by the CGI program or the shell that started it) is hidden during ours."""

_STEERING_NAMES = frozenset(
    # Where programs, libraries and Python's user site are found.
    b"PATH HOME __PYVENV_LAUNCHER__ LIBPATH SHLIB_PATH"
    # glibc: sysdeps/generic/unsecvars.h, what a set-user-id program does not trust.
    b" ARGP_HELP_FMT DATEMSK GCONV_PATH GETCONF_DIR GLIBC_TUNABLES GMON_OUT_PREFIX"
    b" HESIOD_CONFIG HES_DOMAIN HOSTALIASES LOCALDOMAIN LOCPATH NIS_PATH NLSPATH"
    b" RESOLV_HOST_CONF RES_OPTIONS TMPDIR TZDIR"
    # Shells: what sudo takes away ("environment variables to remove" of sudo -V).
    b" BASHOPTS BASH_ENV CDPATH ENV FPATH GLOBIGNORE IFS NULLCMD PS4 READNULLCMD"
    b" SHELLOPTS TMPPREFIX ZDOTDIR PATH_LOCALE TERMCAP TERMINFO TERMINFO_DIRS"
    b" TERMPATH"
    # Other interpreters (the first five from sudo), and the TLS library in Python.
    b" JAVA_TOOL_OPTIONS PERLIO_DEBUG PERLLIB RUBYLIB RUBYOPT NODE_OPTIONS NODE_PATH"
    b" OPENSSL_CONF OPENSSL_ENGINES OPENSSL_MODULES SSLKEYLOGFILE SSL_CERT_DIR"
    b" SSL_CERT_FILE".split()
)
_STEERING_PREFIXES = (
    b"LD_",
    b"_RLD",
    b"DYLD_",
    b"MALLOC_",
    b"PYTHON",
    b"PERL5",
    b"BASH_FUNC_",
    b"FCGI_",
)
"""With ``_STEERING_NAMES``: what makes the loader, the C library, a shell, an
interpreter or this package behave differently. Only the process's own counts."""


def is_meta_variable(name: bytes) -> bool:
    """Whether a variable of this name describes a request."""
    return name in _META_VARIABLES or name.startswith(_META_PREFIXES)


def find_objection(name: bytes) -> tuple[int, str] | None:
    """Why a param of this name stays out of the environment, or None.

    Returns:
        The level and the reason for the log. Never depends on a value.
    """
    if not name:
        return WARNING, "its name is empty"
    if b"=" in name or b"\0" in name:
        return WARNING, "its name holds '=' or NUL"
    # A client makes this one by the header "Proxy", and libraries take it for the
    # proxy of their own requests (CVE-2016-1000110, "httpoxy").
    if name.upper() == b"HTTP_PROXY":
        return INFO, "libraries would take it for their own proxy"
    if name in _STEERING_NAMES or (
        name.startswith(_STEERING_PREFIXES) and name not in _META_VARIABLES
    ):
        return INFO, "only the process's own has a meaning"
    return None

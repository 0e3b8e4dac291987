"""Configurations of ``fcgi-app start`` for the tests, from files in a directory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcgi_app.launcher.config import ConfigLoader
from fcgi_app.launcher.pool import PoolConfig, ServiceConfig

__all__ = ["loader", "parse", "parse_pool"]


def loader(
    directory: Path,
    environ: Mapping[str, str] | None = None,
    **flags: str | bool | tuple[str, ...],
) -> ConfigLoader:
    return ConfigLoader(flags, environ or {}, os.fspath(directory))


def parse(
    directory: Path,
    toml: str,
    environ: Mapping[str, str] | None = None,
    **flags: str | bool | tuple[str, ...],
) -> ServiceConfig:
    """Parse a file ``app.toml``; nothing is looked up."""
    (directory / "app.toml").write_text(toml)
    return loader(directory, environ, config="app.toml", **flags).parse()


def parse_pool(
    directory: Path,
    toml: str = "",
    environ: Mapping[str, str] | None = None,
    **flags: Any,
) -> PoolConfig:
    """The one pool of a file that has address and command already."""
    base = 'bind = "@x"\ncommand = "prog"\n'
    (pool,) = parse(directory, base + toml, environ, **flags).pools
    return pool

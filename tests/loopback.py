"""What the loopback interface of this machine can do."""

from __future__ import annotations

import socket

import pytest


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(
    not _has_ipv6(), reason="the kernel of this machine has IPv6 switched off"
)
"""For what wants a real IPv6 connection; all rules are tested without one as well."""

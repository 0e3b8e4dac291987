"""What a connection refuses although the specification allows it."""

from __future__ import annotations

from ..frozen import Frozen

__all__ = ["Limits"]


class Limits(Frozen):
    """Limits of one connection; passing one costs that connection or request only.

    Attributes:
        max_params_bytes: bytes of all PARAMS of one request. 1 MiB: httpd lets at
            most 100 header fields of 8,190 bytes through (LimitRequestFields,
            LimitRequestFieldSize), nginx four buffers of 8 KiB.
        max_params: name-value pairs of one request. 4,096: forty times httpd's
            LimitRequestFields.
        max_requests: active request ids on one connection. 1,024: HAProxy opens as
            many as its ``max-reqs`` says, whose usual values are below 100.
    """

    max_params_bytes: int = 1 << 20
    max_params: int = 4096
    max_requests: int = 1024

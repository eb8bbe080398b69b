"""What grpc core takes as settings, told from what it would fail on later."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from numbers import Number
from typing import Any

import grpc


def are_options(value: Any) -> bool:
    """Return whether these are channel arguments: several pairs of a name and a number, a text or a pointer."""
    return (
        isinstance(value, Collection) and not isinstance(value, str | bytes | Mapping) and all(map(_is_option, value))
    )


def _is_option(pair: Any) -> bool:
    if not isinstance(pair, tuple | list) or len(pair) != 2:  # noqa: PLR2004 - a name and a value
        return False
    name, value = pair
    if not isinstance(name, str) or isinstance(value, int | str | bytes):
        return isinstance(name, str)
    # grpcio takes all else that can be made an int for the address of something, and so would it take 4e6.
    return hasattr(value, "__int__") and not isinstance(value, Number)


def is_compression(value: object) -> bool:
    """Return whether this is one of grpcio's ways to compress."""
    return isinstance(value, grpc.Compression)


def are_server_credentials(value: object) -> bool:
    """Return whether a server of grpcio can serve with this."""
    return isinstance(value, grpc.ServerCredentials)


def are_channel_credentials(value: object) -> bool:
    """Return whether a channel of grpcio can connect with this."""
    return isinstance(value, grpc.ChannelCredentials)

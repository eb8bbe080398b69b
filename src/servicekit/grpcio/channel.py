"""Making a channel of grpc core."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from .options import CHANNEL, Options, merged

if TYPE_CHECKING:
    from collections.abc import Sequence


def channel_to(
    target: str,
    credentials: grpc.ChannelCredentials | None,
    *,
    options: Options = (),
    compression: grpc.Compression | None = None,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """Return a channel to ``target``, in plaintext without ``credentials``.

    ``options`` are added to ``options.CHANNEL``, and win by name. Must be called where an event loop runs.
    """
    arguments = merged(CHANNEL, options)
    given = list(interceptors)
    if credentials is None:
        return grpc.aio.insecure_channel(target, arguments, compression, given)
    return grpc.aio.secure_channel(target, credentials, arguments, compression, given)

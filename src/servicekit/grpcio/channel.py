"""Making a channel of grpc core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .factories import own
from .options import CHANNEL, Options, merged

if TYPE_CHECKING:
    from collections.abc import Sequence

    import grpc


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
    channel: grpc.aio.Channel
    if credentials is None:
        channel = own("insecure_channel")(target, arguments, compression, given)
    else:
        channel = own("secure_channel")(target, credentials, arguments, compression, given)
    return channel

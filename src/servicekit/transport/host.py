"""What generated ``add_…Servicer_to_server`` functions take, and code written for ``grpc.aio.server`` calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from servicekit.wire import Listener

    from .router import Router


class Host(grpc.aio.Server):
    """The registering half of a server. A ``grpc.aio.Server`` because the generated functions are typed so.

    Methods are registered with the router alone, never with grpc core, which waits at every call for one future per
    method that it knows.
    """

    def __init__(self, router: Router, listener: Listener) -> None:
        """Register with ``router``, bind with ``listener``."""
        self._router = router
        self._listener = listener
        self._bound: list[str] = []

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the server listens, with the ports that were bound."""
        return tuple(self._bound)

    def add_registered_method_handlers(
        self, service_name: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        """Serve the methods of one service: what generated code calls."""
        self._check(service_name)
        self._router.register(service_name, method_handlers)

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Serve what these handlers know."""
        handlers = list(generic_rpc_handlers)
        for handler in handlers:
            if hasattr(handler, "service_name"):
                self._check(handler.service_name())
        self._router.add_generic(handlers)

    def _check(self, service: str) -> None:
        """Raise ValueError for a service that the wire has nothing to tell by."""
        lacking: Mapping[str, str] = getattr(self._listener, "lacking", {})
        if service in lacking:
            raise ValueError(f"{service!r} cannot be served here: {lacking[service]}")

    def add_insecure_port(self, address: str) -> int:
        """Listen on ``address`` in plaintext; returns the port. Raises BindError when it is taken."""
        return _port(self.listen(address, None))

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Listen on ``address`` with TLS; returns the port. Raises BindError when it is taken."""
        return _port(self.listen(address, server_credentials))

    def listen(self, address: str, credentials: object) -> str:
        """Bind ``address`` and return it with its port. Raises BindError when it is taken."""
        bound = self._listener.bind(address, credentials)
        self._bound.append(bound)
        return bound


def _port(address: str) -> int:
    _, _, port = address.rpartition(":")
    return int(port) if port.isdigit() else 1  # grpc's own answer for a Unix socket

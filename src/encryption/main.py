"""The process: reads its environment, puts service, servicer and server together, and serves until it is told to go.

    ADDRESS              where to listen: host:port or unix:path; 127.0.0.1:50051 unless set
    ENCRYPTION_KEYRING   the keys to hold, as id:base64,id:base64, the primary first; unset: passphrases only
    ALLOW_PLAINTEXT      1 allows an address that other machines can reach
    WIRE                 what it speaks over: grpcio, which is the default, or native

It exits with 0 when every call had finished, 1 when it could not start, 3 when calls had to be abandoned, and 128 + n
at a second signal n.
"""

import asyncio
import os
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Final

import encryption.quiet  # noqa: F401 - first of all
from encryption.errors import InvalidInput
from encryption.keys import Keyring
from encryption.service import EncryptionService
from encryption.servicer import ERRORS, EncryptionServicer
from encryption.v1.encryption_pb2_grpc import add_EncryptionServiceServicer_to_server
from servicekit import Exit, Server, Telemetry, middleware, standard

_PORT_MAX: Final = 65535
_WIRES: Final = ("grpcio", "native")


class BadSetting(Exception):
    """Raised when the environment holds what cannot be served with; names the variable, never a key."""


async def main() -> None:
    """Serve. Raises SystemExit with the codes of `Exit`."""
    telemetry = Telemetry()
    try:
        address, keyring, wire = read_address(os.environ), read_keyring(os.environ), read_wire(os.environ)
    except BadSetting as error:
        telemetry.logger.error("cannot start", reason=str(error))  # noqa: TRY400 - a wrong setting needs no traceback
        raise SystemExit(Exit.NOT_STARTED) from None
    async with EncryptionService(keyring) as service:
        server = Server(
            address,
            # What every call should have, then the rules of the proto; your own links go after them.
            middleware=[*standard(telemetry), middleware.Validation()],
            errors=ERRORS,
            telemetry=telemetry,
            wire=wire,
        )
        add_EncryptionServiceServicer_to_server(EncryptionServicer(service), server)
        await server.run()


def read_address(environment: Mapping[str, str]) -> str:
    """Return where to listen. Raises BadSetting for what is no address, and for one that is not safe in plaintext."""
    address = environment.get("ADDRESS", "127.0.0.1:50051")
    if address.startswith(("unix:", "unix-abstract:")):
        return address
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _PORT_MAX:
        raise BadSetting(f"ADDRESS={address!r} is neither host:port nor unix:path")
    if not _is_loopback(host) and environment.get("ALLOW_PLAINTEXT") != "1":
        raise BadSetting(
            f"ADDRESS={address!r} can be reached from other machines, and passphrases would travel in plaintext: "
            "set ALLOW_PLAINTEXT=1 if something in front of it speaks TLS"
        )
    return address


def read_keyring(environment: Mapping[str, str]) -> Keyring | None:
    """Return the keys to hold, None when there are none. Raises BadSetting, which shows nothing of them."""
    text = environment.get("ENCRYPTION_KEYRING")
    try:
        return None if text is None else Keyring.parse(text)
    except InvalidInput as error:
        raise BadSetting(f"ENCRYPTION_KEYRING: {error}") from None


def read_wire(environment: Mapping[str, str]) -> str:
    """Return what to speak over. Raises BadSetting for what is no wire."""
    wire = environment.get("WIRE", "grpcio")
    if wire not in _WIRES:
        raise BadSetting(f"WIRE={wire!r} is none of {', '.join(_WIRES)}")
    return wire


def _is_loopback(host: str) -> bool:
    # Only names and numbers that say so themselves: what any other name stands for is decided elsewhere.
    try:
        return host.lower() == "localhost" or ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    asyncio.run(main())

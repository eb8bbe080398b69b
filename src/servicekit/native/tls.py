"""TLS and mTLS by the standard library: certificates that may change while the server runs, and who the peer is."""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from servicekit.wire import Security

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

H2: Final = "h2"  # RFC 9113, section 3.2

PLAINTEXT: Final = Security(
    properties={"transport_security_type": [b"insecure"], "security_level": [b"TSI_SECURITY_NONE"]}
)
"""What is known of a peer without TLS, in grpcio's words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """What a server shows and whom it believes, in PEM: its key, its chain, and the authorities of its clients."""

    key: bytes = field(repr=False)
    chain: bytes
    client_authorities: bytes | None = None

    def __post_init__(self) -> None:
        """Raise TypeError for what is no PEM in bytes, by name; what it is instead may be a key, and is not shown."""
        for name in ("key", "chain", "client_authorities"):
            value = getattr(self, name)
            if not isinstance(value, bytes) and not (name == "client_authorities" and value is None):
                raise TypeError(f"{name} is PEM as bytes, not {type(value).__name__}: Path(…).read_bytes()")


Provider: TypeAlias = "Callable[[], Certificates]"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsCredentials:
    """Server credentials of the native wire: where certificates come from, and whether a client must show its own.

    ``certificates`` is asked at each handshake, on the loop, so it returns what it has at hand; while it returns the
    same object nothing is made anew. ``client`` says whether a client's certificate is wanted: "none" (it is not asked
    for), "optional" or "required"; one that is shown is always verified. What wants one needs ``client_authorities``.
    """

    certificates: Certificates | Provider
    client: Literal["none", "optional", "required"] = "none"

    def __post_init__(self) -> None:
        """Raise TypeError or ValueError for what cannot be served with."""
        if self.client not in _VERIFY:
            raise ValueError(f"client={self.client!r} is none of 'none', 'optional', 'required'")
        if not isinstance(self.certificates, Certificates) and not callable(self.certificates):
            raise TypeError(f"certificates are Certificates or a function, not {type(self.certificates).__name__}")


_VERIFY: Final = {"none": ssl.CERT_NONE, "optional": ssl.CERT_OPTIONAL, "required": ssl.CERT_REQUIRED}


def credentials_of(given: object) -> TlsCredentials | None:
    """Return credentials as they were given to ``bind``. Raises TypeError for those of another wire."""
    if given is None or isinstance(given, TlsCredentials):
        return given
    raise TypeError(
        f"wire='native' takes TlsCredentials of servicekit.native.tls, not {type(given).__name__}: "
        "grpcio's credentials cannot be read back"
    )


def context_of(credentials: TlsCredentials) -> ssl.SSLContext:
    """Return a context for a listener, which asks for the certificates anew at each handshake.

    Raises ssl.SSLError or ValueError when those that there are now cannot be used.
    """
    made: list[tuple[Certificates, ssl.SSLContext]] = []

    def current() -> ssl.SSLContext:
        given = credentials.certificates
        certificates = given if isinstance(given, Certificates) else given()
        if not isinstance(certificates, Certificates):
            raise TypeError(f"the provider of certificates returned no Certificates but {type(certificates).__name__}")
        if not made or made[0][0] is not certificates:
            made[:] = [(certificates, _made(certificates, credentials.client))]
        return made[0][1]

    def choose(connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _first: ssl.SSLContext) -> None:
        connection.context = current()

    first = current()
    if callable(credentials.certificates):
        # Called at each handshake, also where the client names no server. What it puts in the place of the first one
        # may be the same, and needs no callback of its own.
        outer = _made(made[0][0], credentials.client)
        outer.sni_callback = choose
        return outer
    return first


def security_of(connection: ssl.SSLObject) -> Security:
    """Return who the peer of a TLS connection is, in the words of grpc core's TSI."""
    properties: dict[str, list[bytes]] = {"transport_security_type": [b"ssl"]}
    certificate = connection.getpeercert()
    der = connection.getpeercert(binary_form=True)
    identity = None
    if certificate and der:
        identity = _describe(certificate, properties)
        properties["x509_pem_cert"] = [ssl.DER_cert_to_PEM_cert(der).encode()]
    properties["security_level"] = [b"TSI_PRIVACY_AND_INTEGRITY"]
    properties["ssl_session_reused"] = [b"true" if connection.session_reused else b"false"]
    version = connection.version()
    if version is not None:
        properties["ssl_tls_version"] = [version.encode()]
    return Security(properties=properties, identity_key=identity)


_NAMES: Final = {"DNS": "peer_dns", "URI": "peer_uri", "IP Address": "peer_ip", "email": "peer_email"}
_COMMON_NAME: Final = "commonName"
_SHORT: Final = {
    "commonName": "CN",
    "countryName": "C",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
}


def _describe(certificate: Mapping[str, object], properties: dict[str, list[bytes]]) -> str | None:
    """Write down what a verified certificate says, and return which property names the peer."""
    subject = [pair for part in _pairs(certificate.get("subject")) for pair in _pairs(part)]
    if subject:
        # RFC 4514: the last part first
        text = ",".join(f"{_SHORT.get(str(key), key)}={value}" for key, value in reversed(subject))
        properties["x509_subject"] = [text.encode()]
    common = [str(value).encode() for key, value in subject if key == _COMMON_NAME]
    if common:
        properties["x509_common_name"] = common[:1]
    names = [(str(kind), str(value)) for kind, value in _pairs(certificate.get("subjectAltName"))]
    for kind, value in names:
        if kind in _NAMES:
            properties.setdefault("x509_subject_alternative_name", []).append(value.encode())
            properties.setdefault(_NAMES[kind], []).append(value.encode())
    uris = properties.get("peer_uri", [])
    if len(uris) == 1 and uris[0].startswith(b"spiffe://"):  # X509-SVID, section 2: exactly one
        properties["peer_spiffe_id"] = uris
    if "x509_subject_alternative_name" in properties:
        return "x509_subject_alternative_name"
    return "x509_common_name" if common else None


def _pairs(value: object) -> tuple[tuple[object, object], ...]:
    return value if isinstance(value, tuple) else ()


def _made(certificates: Certificates, client: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 9113, section 9.2
    # Section 9.2.1 (no compression, no renegotiation) and 9.2.2 (which cipher suites): the ones with forward secrecy
    # and authenticated encryption, which is also what appendix A leaves.
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.set_alpn_protocols([H2])
    context.verify_mode = _VERIFY[client]
    if certificates.client_authorities is not None:
        context.load_verify_locations(cadata=certificates.client_authorities.decode("ascii"))
    elif client != "none":
        raise ValueError(f"client={client!r} needs client_authorities to verify a certificate with")
    with _file(certificates.key) as key, _file(certificates.chain) as chain:
        context.load_cert_chain(chain, key)
    return context


@contextlib.contextmanager
def _file(content: bytes) -> Iterator[str]:
    """Give ``content`` a name, which OpenSSL's own functions want: in memory where the system can do that."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("certificates")
        try:
            os.write(descriptor, content)
            yield f"/proc/self/fd/{descriptor}"
        finally:
            os.close(descriptor)
    else:
        with tempfile.NamedTemporaryFile() as file:  # nobody else may read it
            file.write(content)
            file.flush()
            yield file.name

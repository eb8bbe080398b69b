"""An issuer of tokens, good ones and bad ones, with keys of its own."""

from __future__ import annotations

import base64
import functools
import json
import time
from typing import Any, TypeAlias

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

Untyped: TypeAlias = Any
"""A key of any type, or a claim."""


ISSUER = "https://issuer.test"
AUDIENCE = "echo"
DAY = 86_400
SECRET = "a shared secret of more than thirty-two bytes"


@functools.cache
def rsa_key(name: str = "rsa", size: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=size)


@functools.cache
def ec_key(name: str = "ec") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@functools.cache
def ed_key(name: str = "ed") -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def jwks() -> dict[str, Untyped]:
    """The issuer's public keys."""
    return {
        "keys": [
            {**RSAAlgorithm.to_jwk(rsa_key().public_key(), as_dict=True), "kid": "rsa", "use": "sig", "alg": "RS256"},
            {**ECAlgorithm.to_jwk(ec_key().public_key(), as_dict=True), "kid": "ec"},
            {**OKPAlgorithm.to_jwk(ed_key().public_key(), as_dict=True), "kid": "ed"},
        ]
    }


def pem(key: Untyped) -> str:
    """The public half of a key."""
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def claims(**changed: Untyped) -> dict[str, Untyped]:
    """Claims that are good, but for what is changed; None takes one out."""
    given = {"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "exp": int(time.time()) + DAY, "roles": ["reader"]}
    return {key: value for key, value in (given | changed).items() if value is not None}


def token(
    *,
    key: Untyped = None,
    algorithm: str = "RS256",
    kid: str | None = "rsa",
    headers: dict[str, Untyped] | None = None,
    **changed: Untyped,
) -> str:
    """A token that is good, but for what is changed."""
    named = {} if kid is None else {"kid": kid}
    return jwt.encode(
        claims(**changed), rsa_key() if key is None else key, algorithm=algorithm, headers=named | (headers or {})
    )


def encoded(part: object) -> str:
    """A part of a token: JSON, or whatever bytes are given."""
    data = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def forged(header: object, payload: object, signature: bytes = b"x" * 256) -> str:
    """A token that nobody has signed."""
    return f"{encoded(header)}.{encoded(payload)}.{encoded(signature)}"


def changed(good: str, **payload: Untyped) -> str:
    """A good token whose claims were changed after it was signed."""
    header, _, signature = good.split(".")
    return f"{header}.{encoded(claims(**payload))}.{signature}"


def bearer(value: str) -> tuple[str, str]:
    return "authorization", f"Bearer {value}"

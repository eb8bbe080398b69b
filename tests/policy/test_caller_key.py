"""What a limit counts under."""

from __future__ import annotations

import pytest

from servicekit.policy.caller_key import key_of
from servicekit.principal import Principal
from servicekit.testing import make_call


@pytest.mark.parametrize(
    ("peer", "key"),
    [
        ("ipv4:10.0.0.1:5000", "ipv4:10.0.0.1"),
        ("ipv6:%5B::1%5D:5000", "ipv6:%5B::1%5D"),
        ("ipv6:[::1]:5000", "ipv6:[::1]"),
        ("unix:/run/service:1", "unix:/run/service:1"),
        ("", ""),
    ],
)
def test_a_peer_is_its_host(peer: str, key: str) -> None:
    """Without the port."""
    assert key_of("peer")(make_call(peer=peer)) == key


def test_a_principal_is_its_name_within_its_scheme() -> None:
    """What cannot be a key is like nobody."""
    call = make_call()
    assert key_of("principal")(call) is None
    call.state["principal"] = Principal(name="alice", scheme="basic", roles=frozenset({"admin"}))
    assert key_of("principal")(call) == "basic:alice"
    call.state["principal"] = {"name": "alice"}
    assert key_of("principal")(call) is None


def test_a_method_is_its_path_and_a_function_is_itself() -> None:
    """The other two."""
    assert key_of("method")(make_call(path="/any/Thing")) == "/test.Service/Method"
    assert key_of(lambda call: call.path)(make_call(path="/any/Thing")) == "/any/Thing"

"""Wrong settings of ``Server`` and ``connect``."""

from __future__ import annotations

import re
from typing import Any

import pytest

from servicekit import Server, connect

BOTH: dict[str, list[Any]] = {
    "middleware": ["standard", 5, print],
    "telemetry": ["json"],
    "interceptors": [5],
    "options": [5, {"grpc.x": 1}, [("grpc.x",)], [(5, 5)], [("grpc.x", None)], "xy"],
    "compression": ["gzip", 2],
    "wire": [5, object()],
    "clock": [5],
}
SERVER: dict[str, list[Any]] = {
    "drain": [5],
    "threads": [5],
    "health": ["no", None],
    "reflection": ["no"],
}


def cases(*settings: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for some in settings for name, values in some.items() for value in values]


@pytest.mark.parametrize(("name", "value"), cases(BOTH, SERVER))
async def test_a_wrong_setting_of_a_server_is_named_where_it_is_given(name: str, value: object) -> None:
    """Not when the server starts, and not at its end: a wrong ``drain`` would lose the calls that it is for."""
    settings: Any = {name: value}
    with pytest.raises(TypeError, match=re.escape(f"{name}={value!r}")):
        Server("127.0.0.1:0", **settings)


@pytest.mark.parametrize(("name", "value"), cases(BOTH))
async def test_a_wrong_setting_of_a_channel_is_named_where_it_is_given(name: str, value: object) -> None:
    """Not at its first call, or when it is closed."""
    settings: Any = {name: value}
    with pytest.raises(TypeError, match=re.escape(f"{name}={value!r}")):
        connect("127.0.0.1:1", **settings)


@pytest.mark.parametrize("address", [None, 5, [5], {"127.0.0.1:0": 1}])
async def test_an_address_is_text(address: object) -> None:
    """So is a target."""
    given: Any = address
    with pytest.raises(TypeError, match=re.escape(f"address={address!r}")):
        Server(given)
    with pytest.raises(TypeError, match=re.escape(f"target={address!r}")):
        connect(given)


async def test_wrong_credentials_are_not_shown() -> None:
    """They may be the key itself."""
    secret: Any = "-----BEGIN PRIVATE KEY-----"
    for make in (Server, connect):
        with pytest.raises(TypeError, match="credentials of type str") as raised:
            make("127.0.0.1:0", credentials=secret)
        assert "PRIVATE" not in str(raised.value)

"""Every setting of every link, and of what is given to one: none is taken that could only fail later."""

from __future__ import annotations

import enum
import importlib
import inspect
import io
import math
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, TypeAlias

import pytest
from opentelemetry.sdk.trace import TracerProvider

import servicekit.middleware
from servicekit.clock import MovableClock, SystemClock
from servicekit.loop_lag import LoopLag
from servicekit.metrics.otel import OtelMetrics
from servicekit.metrics.prometheus import PrometheusMetrics
from servicekit.middleware import Access, hash_key, hash_password, standard, standard_client
from servicekit.native.options import NativeOptions
from servicekit.policy.backoff import Backoff
from servicekit.policy.budget import Budget
from servicekit.process.drain import Drain
from servicekit.telemetry import Telemetry
from tests.security.tokens import AUDIENCE, ISSUER, jwks

from .callers import KEYS, USERS

Part: TypeAlias = Callable[..., object]


def links() -> Iterator[Part]:
    """Every class that a module of the links has for others to make, new ones too."""
    for found in pkgutil.iter_modules(servicekit.middleware.__path__):
        module = importlib.import_module(f"{servicekit.middleware.__name__}.{found.name}")
        for name, thing in vars(module).items():
            if not inspect.isclass(thing) or thing.__module__ != module.__name__ or name.startswith("_"):
                continue
            if not issubclass(thing, enum.Enum) and not getattr(thing, "_is_protocol", False):
                yield thing


PARTS: Final[list[Part]] = [
    *links(),
    standard,
    standard_client,
    hash_key,
    hash_password,
    Backoff,
    Budget,
    Drain,
    LoopLag,
    MovableClock,
    NativeOptions,
    OtelMetrics,
    PrometheusMetrics,
    Telemetry,
]


class Engine:
    """An enforcer that allows nothing."""

    def enforce(self, *_: object) -> bool:
        return False

    async def load_policy(self) -> None:
        pass


TELEMETRY: Final = Telemetry(
    log="json", stream=io.BytesIO(), traces=TracerProvider(shutdown_on_exit=False), metrics="prometheus"
)
GIVEN: Final[dict[str, dict[str, Any]]] = {
    "AccessLog": {"telemetry": TELEMETRY},
    "ApiKeyAuth": {"keys": KEYS},
    "AttemptTracing": {"telemetry": TELEMETRY},
    "Authorize": {"rules": {"/a.B/*": Access.PUBLIC}},
    "BasicAuth": {"users": USERS},
    "Bulkhead": {"concurrency": 1},
    "Credentials": {"factory": lambda: "Bearer canary"},
    "JwtAuth": {"keys": jwks(), "issuer": ISSUER, "audience": AUDIENCE},
    "Metrics": {"telemetry": TELEMETRY},
    "MtlsIdentity": {"dns": ["a.example"]},
    "RateLimit": {"per_second": 5.0},
    "RedisLimit": {"url": "redis://localhost:6379"},
    "StreamIdle": {"seconds": 1.0},
    "Token": {"value": "Bearer canary"},
    "Tracing": {"telemetry": TELEMETRY},
    "hash_key": {"key": "canary" * 5},
    "hash_password": {"password": "canary", "cost": 10, "parallel": 1},
    "standard": {"telemetry": TELEMETRY},
    "standard_client": {"telemetry": Telemetry(log=None)},  # a tracing link would look at the target too
}
"""What a part cannot be made without."""

BESIDE: Final[dict[str, dict[str, Any]]] = {
    "Authorize.enforcer": {"rules": None},
    "Authorize.question": {"rules": None, "enforcer": Engine()},
    "JwtAuth.jwks_url": {"keys": None},
}
"""What must be given otherwise, where two settings exclude each other."""

_NUMBERS: Final = ["5", True, math.nan, -1, 10**400]
_TEXTS: Final = ["one", 5, [5], [""], {"one": "two"}]
_MAPPINGS: Final = ["admin", 5, ["admin"], {"a": 5}]
WRONG: Final[dict[str, list[Any]]] = {
    "bool": ["no", 1.5, 1, None],
    "bool | None": ["no", 1.5, 1],
    "float": [*_NUMBERS, math.inf, None],
    "float | None": [*_NUMBERS, math.inf],
    "float | tuple[float, float]": [*_NUMBERS, math.inf, None, (1.0,), (2.0, 1.0), ("5", 6.0), (-1.0, 2.0)],
    "int": ["5", True, 1.5, math.nan, -1, None],
    "int | None": ["5", True, 1.5, math.nan, -1],
    "str": [5, None],
    "str | None": [5, ["one"]],
    "str | Iterable[str]": [5, [5], [""], {"one": "two"}],
    "Iterable[str]": _TEXTS,
    "Backoff": [0.1, None, Backoff],
    "Budget": [3, None, Budget],
    "Callable[[Call], bool] | None": ["10.0.0.0/8", 5],
    "Callable[[Principal, Call], Sequence[object]] | None": ["sub", 5],
    "Clock | None": [5, "system", SystemClock],
    "Code | Error | None": [14, "UNAVAILABLE"],
    "CollectorRegistry | None": ["default", 5],
    "Enforcer | None": ["model.conf", 5],
    "Factory": ["Bearer canary", None],
    "Fallback | None": ["none", 5],
    "Format | Logger | None": ["xml", 5],
    "IO[str] | IO[bytes] | None": ["stdout", 5],
    "Key": ["nobody", 5, None],
    "Level": ["loud", 5, None],
    "Level | None": ["loud", 5, ["info"]],
    "Limits": [5, None],
    "Mapping[str, Any] | None": [["canary"], "canary", 5],
    "Mapping[str, Iterable[str]] | None": [*_MAPPINGS, {"a": "admin"}, {"a": [5]}],
    "Mapping[str, Rule] | None": [*_MAPPINGS, {"/a.B/C": 5}, {"/a.B/C": "admin"}, {"/a.B/C": [5]}, {5: ["admin"]}],
    "Mapping[str, str | Iterable[str]]": [["canary"], "canary", 5],
    "Mapping[str, str]": [["canary"], "canary", 5],
    "Mapping[type[Exception], Rule] | ErrorMapping | None": ["canary", 5, [KeyError], {KeyError: 5}, {"KeyError": 5}],
    "Marked": ["/a.B/C", 5, [5], ["a.B/C"]],
    "Provider | Literal['prometheus'] | None": ["statsd", 5],
    "Store | None": ["redis://user:canary@host", 5],
    "Telemetry": [None, "json", Telemetry],
    "TextMapPropagator | None": ["b3", 5],
    "metrics.MeterProvider | None": ["global", 5],
    "trace.TracerProvider | trace.Tracer | Literal['auto'] | None": ["otlp", 5],
}
"""What is wrong for each type that a setting has. A setting of a new type needs a line here."""

RIGHT: Final[dict[str, list[Any]]] = {
    "Authorize.expire": [math.inf],
    "Criticality.default": ["sheddable", None],
    "Faults.seed": [-1],
    "JwtAuth.expire": [math.inf],
    "MovableClock.seed": [-1],
    "MovableClock.start": [-1],
    "Token.expires_in": [math.inf],
}
"""What is right for one setting, though it is wrong for others of its type."""

SECRET: Final = {
    "ApiKeyAuth.keys",
    "BasicAuth.users",
    "Credentials.factory",
    "JwtAuth.jwks_url",
    "JwtAuth.keys",
    "RateLimit.store",
    "RedisLimit.url",
    "Token.value",
    "hash_key.key",
    "hash_password.password",
}
"""Settings that hold a secret, or may: of their values the type alone may be said."""


def settings() -> Iterator[tuple[Part, str, str]]:
    """Every setting of every part, with its type as it is written."""
    for part in PARTS:
        for name, parameter in inspect.signature(part).parameters.items():
            yield part, name, str(parameter.annotation)


def cases(*, right: bool) -> list[Any]:
    found: list[Any] = []
    for part, name, annotation in settings():
        exceptions = RIGHT.get(f"{part.__name__}.{name}", [])
        wrong = [value for value in WRONG.get(annotation, []) if not any(value == each for each in exceptions)]
        found.extend(
            pytest.param(part, name, value, id=f"{part.__name__}.{name}={str(value)[:40]}")
            for value in (exceptions if right else wrong)
        )
    return found


def make(part: Part, **given: Any) -> object:  # noqa: ANN401 - right or wrong
    beside = [BESIDE.get(f"{part.__name__}.{name}", {}) for name in given]
    everything = GIVEN.get(part.__name__, {}) | {name: value for some in beside for name, value in some.items()}
    return part(**everything | given)


def culprits(value: object) -> Iterator[object]:
    """What a message may show: the value or, where it holds several, the one that is wrong."""
    yield value
    if isinstance(value, Mapping):
        yield from (part for item in value.items() for each in item for part in culprits(each))
    elif isinstance(value, list | tuple):
        yield from value


def test_every_setting_has_a_type_whose_wrong_values_are_known() -> None:
    """Else nobody would try what it takes."""
    unknown = {
        annotation: f"{part.__name__}.{name}" for part, name, annotation in settings() if annotation not in WRONG
    }
    assert unknown == {}


def test_the_tables_name_nothing_that_is_gone() -> None:
    """A line that is never used hides that its setting is not tried."""
    known = {f"{part.__name__}.{name}" for part, name, _ in settings()}
    given = {f"{part}.{name}" for part, names in GIVEN.items() for name in names}
    assert (RIGHT.keys() | BESIDE.keys() | SECRET | given) - known == set()
    assert WRONG.keys() - {annotation for _, _, annotation in settings()} == set()


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.__name__)
def test_what_is_right_is_taken(part: Part) -> None:
    """Else the test below would see a refusal, and not the one that it is for."""
    assert make(part) is not None


@pytest.mark.parametrize(("part", "name", "value"), cases(right=True))
def test_what_is_right_for_one_setting_alone_is_taken(part: Part, name: str, value: object) -> None:
    """The exceptions are true."""
    assert make(part, **{name: value}) is not None


@pytest.mark.parametrize(("part", "name", "value"), cases(right=False))
def test_a_wrong_setting_is_refused_by_name_and_value(part: Part, name: str, value: object) -> None:
    """Where it is written, and not at the first call or the first failure; of a secret the type is said."""
    with pytest.raises((TypeError, ValueError)) as caught:
        make(part, **{name: value})
    told = str(caught.value)
    assert re.search(rf"\b{name}\b", told)
    if f"{part.__name__}.{name}" in SECRET:
        assert "canary" not in told
        assert type(value).__name__ in told
    else:
        assert any(repr(each) in told for each in culprits(value))

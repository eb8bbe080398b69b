"""The public face: what people import, and what must not change without a word in the changelog."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import typing
from collections.abc import Iterator
from types import ModuleType

import pytest

import servicekit
import servicekit.memory
import servicekit.middleware
import servicekit.testing

FACE = """
AccessLog(telemetry, *, auxiliary, success_ratio, slow)
BindError
By
Call
CallError(error, *, inherited)
CallReport(*, method, attempts, decisions, waited, seconds)
Certificates(*, key, chain, client_authorities)
Channel
Clock
Code
Deadline(*, default, cap, doomed)
Drain(*, delay, grace, flush)
Endpoint
Error(code, message, *, reason, details, retry_after, begun, by, refused, headers, trailers)
Exit
Idempotency
Kind
LoadShedding(*, initial, least, most, lag, lag_time, trusted, retry_after)
Message
Method(*, service, name, kind, idempotency, options, known, auxiliary)
Middleware
Recovery(errors)
RequestId(*, header)
Retry(*, attempts, backoff, budget, idempotent, keep, patience)
Server(address, *, middleware, errors, telemetry, drain, credentials, interceptors, options, compression, threads, \
health, reflection, wire, clock)
Side
SystemClock()
Telemetry(*, log, traces, metrics, level, stream, clock, old_names)
TlsCredentials(*, certificates, client)
chain(*middleware)
client_interceptors(middleware, *, clock)
connect(target, *, middleware, telemetry, credentials, interceptors, options, compression, wire, clock)
current_call()
detached()
only(match, middleware)
report(of)
server_interceptor(middleware, *, errors, threads, clock)
standard(telemetry, *, errors)
standard_client(telemetry, *, target)
"""

NOT_CALLED = {
    "BindError",
    "By",
    "Call",
    "Channel",
    "Clock",
    "Code",
    "Endpoint",
    "Exit",
    "Idempotency",
    "Kind",
    "Message",
    "Middleware",
    "Side",
}


NAMES = {
    servicekit.middleware: """
        Access AccessLog AdaptiveThrottle ApiKeyAuth AttemptTracing Authorize Backoff BasicAuth Budget Bulkhead
        CircuitBreaker Credentials Deadline Faults Hedge JwtAuth LoadShedding Metrics MtlsIdentity Principal RateLimit
        Recovery RequestId Retry StreamIdle Token Tracing Validation hash_key hash_password new_key principal_of
        standard standard_client
    """,
    servicekit.testing: """
        MovableClock Pair RecordedCall Recorder Scripted make_call no_leaks pair run scripted sends waits
    """,
    servicekit.memory: "Limits MemoryNetwork",
}
"""What the other faces have; their links say in ``explain()`` and in their own tests what they are made with."""


def signature(name: str) -> str:
    """Return a name of the face with its parameters, where users call it."""
    if name in NOT_CALLED:
        return name
    shown = []
    keywords = False
    for parameter in inspect.signature(getattr(servicekit, name)).parameters.values():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not keywords:
            keywords = True
            shown.append("*")
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            keywords = True
            shown.append(f"*{parameter.name}")
        else:
            shown.append(parameter.name)
    return f"{name}({', '.join(shown)})"


def test_the_face_is_what_it_was() -> None:
    """A change here is one that users see: it goes with a line in the README's changelog."""
    assert [signature(name) for name in servicekit.__all__] == FACE.strip().splitlines()


@pytest.mark.parametrize("face", NAMES, ids=lambda face: face.__name__)
def test_the_other_faces_are_what_they_were(face: ModuleType) -> None:
    """As above, by name."""
    assert face.__all__ == NAMES[face].split()


def test_what_needs_an_extra_is_in_its_face_and_asked_for_by_name() -> None:
    """RedisLimit is there for who has its extra; all others can import all the rest."""
    code = """if True:
        import sys
        from servicekit.middleware import *
        assert "limits" not in sys.modules
        from servicekit.middleware import RedisLimit
        print(RedisLimit.__module__)
        del sys.modules[RedisLimit.__module__]
        sys.modules["limits"] = None
        from servicekit.middleware import *
        try:
            from servicekit.middleware import RedisLimit
        except ImportError as error:
            print(error)
    """
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == [
        "servicekit.middleware.redis_limit",
        "RedisLimit needs the extra servicekit[redis]",
    ]
    with pytest.raises(AttributeError, match="'Rdislimit'"):
        _ = servicekit.middleware.Rdislimit  # type: ignore[attr-defined]  # type checkers know a wrong name too


LINKS = [getattr(servicekit.middleware, name) for name in servicekit.middleware.__all__]
SETTINGS = [link for link in LINKS if dataclasses.is_dataclass(link)]


def kinds_in(hint: object) -> Iterator[object]:
    """Yield a type and all that it is made of."""
    yield hint
    for part in hint if isinstance(hint, list) else typing.get_args(hint):
        yield from kinds_in(part)


@pytest.mark.parametrize("link", SETTINGS, ids=lambda link: link.__name__)
def test_what_a_setting_takes_is_public(link: type) -> None:
    """Who writes a setting of a link imports what it is from a face. A protocol is kept without being imported."""
    faces = (servicekit, *NAMES)
    public = {id(getattr(face, name)) for face in faces for name in face.__all__}
    hidden = [
        (setting.name, kind)
        for setting in dataclasses.fields(link)
        if setting.init
        for kind in kinds_in(eval(str(setting.type), vars(sys.modules[link.__module__])))
        if inspect.isclass(kind) and kind.__module__.startswith("servicekit.") and id(kind) not in public
        if not getattr(kind, "_is_protocol", False)
    ]
    assert hidden == []


def test_the_face_is_sorted_and_defines_nothing() -> None:
    """A name of the face has its home elsewhere; the face only lists it."""
    assert servicekit.__all__ == sorted(servicekit.__all__)
    for name in servicekit.__all__:
        home = getattr(getattr(servicekit, name), "__module__", "typing")
        assert home != "servicekit", name


def test_every_public_thing_has_a_docstring() -> None:
    """help() on anything that the face names says what it promises."""
    undocumented = [
        name
        for face in (servicekit, *NAMES)
        for name in face.__all__
        if (inspect.isclass(thing := getattr(face, name)) or inspect.isfunction(thing)) and not inspect.getdoc(thing)
    ]
    assert undocumented == []

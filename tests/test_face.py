"""The public face: what people import, and what must not change without a word in the changelog."""

from __future__ import annotations

import inspect

import servicekit
import servicekit.testing

FACE = """
AccessLog(telemetry, *, auxiliary, success_ratio, slow)
BindError
Call
CallError(error, *, inherited)
CallReport(*, method, attempts, decisions, waited, seconds)
Certificates(*, key, chain, client_authorities)
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
    "Call",
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
        for face in (servicekit, servicekit.testing)
        for name in face.__all__
        if (inspect.isclass(thing := getattr(face, name)) or inspect.isfunction(thing)) and not inspect.getdoc(thing)
    ]
    assert undocumented == []

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from servicekit.call import Call, Side
from servicekit.clock import MovableClock
from servicekit.endpoint import Chain, Endpoint, Message, Middleware, chain, only
from servicekit.errors import Code, Error
from servicekit.metadata import Metadata
from servicekit.method import Kind, Method
from servicekit.wire import Security

ENCRYPT = Method(service="encryption.v1.Encryption", name="Encrypt", kind=Kind.UNARY)
DECRYPT = Method(service="encryption.v1.Encryption", name="Decrypt", kind=Kind.UNARY)
CHECK = Method(service="grpc.health.v1.Health", name="Check", kind=Kind.UNARY)


class NoWire:
    committed = False
    draining = None

    def security(self) -> Security:
        return Security()

    async def send(self, call: Call, message: object) -> None:
        raise NotImplementedError

    def limit(self, call: Call) -> None:
        pass

    def stop(self, call: Call) -> None:
        pass


def call(method: Method = ENCRYPT) -> Call:
    return Call(method, side=Side.SERVER, exchange=NoWire(), clock=MovableClock(), metadata=Metadata())


class Noting:
    """Leaves its name on the way in and on the way out."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name = name
        self.notes = notes

    async def __call__(self, request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
        self.notes.append(f"{self.name} in")
        try:
            return await next(request, call)
        finally:
            self.notes.append(f"{self.name} out")

    def __repr__(self) -> str:
        return f"Noting({self.name})"


async def echo(request: Message, _: Call) -> Message:
    return request


async def shout(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    return (await next(request, call)).upper()


async def test_the_first_link_is_the_outermost() -> None:
    """Links run in the order they are given, and unwind in reverse."""
    notes: list[str] = []
    links = chain(*(Noting(name, notes) for name in "abc"))
    assert await links.around(echo, ENCRYPT)("hello", call()) == "hello"
    assert notes == ["a in", "b in", "c in", "c out", "b out", "a out"]


async def test_every_way_out_is_seen() -> None:
    """An error passes every link on its way out."""
    notes: list[str] = []

    async def fail(_: Message, __: Call) -> Message:
        raise Error(Code.NOT_FOUND)

    with pytest.raises(Error, match="NOT_FOUND"):
        await chain(Noting("a", notes), Noting("b", notes)).around(fail, ENCRYPT)("hello", call())
    assert notes == ["a in", "b in", "b out", "a out"]


async def test_an_empty_chain_changes_nothing() -> None:
    """No middleware: the endpoint itself, not one more frame."""
    assert chain().around(echo, ENCRYPT) is echo
    assert await chain()("hello", call(), echo) == "hello"
    assert repr(chain()) == "chain()"


async def test_a_chain_is_a_middleware() -> None:
    """Chains nest, and are taken apart: one flat list of links."""
    notes: list[str] = []
    a, b, c = (Noting(name, notes) for name in "abc")
    nested = chain(a, chain(b, chain(c)))
    assert isinstance(nested, Chain)
    assert nested.links == (a, b, c)
    assert await nested("hello", call(), echo) == "hello"
    assert notes == ["a in", "b in", "c in", "c out", "b out", "a out"]


async def test_a_link_may_answer_and_ask_again() -> None:
    """A link that does not call next is the end of the way; one that calls it twice has it run twice."""
    asked: list[Message] = []

    async def endpoint(request: Message, _: Call) -> Message:
        asked.append(request)
        return request

    async def twice(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
        await next(request, call)
        return await next(request + "!", call.fork())

    async def refuse(_: Message, __: Call, ___: Endpoint) -> Message:
        return "no"

    assert await chain(twice, shout).around(endpoint, ENCRYPT)("hello", call()) == "HELLO!"
    assert asked == ["hello", "hello!"]
    assert await chain(refuse, twice).around(endpoint, ENCRYPT)("hello", call()) == "no"
    assert len(asked) == 2


@pytest.mark.parametrize("link", [None, 1, "retry", object(), []])
def test_what_is_no_middleware_is_refused(link: Middleware) -> None:
    """A link that cannot be called fails where the chain is made, naming it."""
    with pytest.raises(TypeError, match=r"\(request, call, next\)") as raised:
        chain(shout, link)
    assert repr(link) in str(raised.value)


def test_its_repr_lists_its_links() -> None:
    """Outermost first: functions by name, objects as they show themselves, nested chains flat."""
    links = chain(Noting("a", []), chain(shout, only("/a.B/*", shout)), only(is_health, Noting("b", [])))
    assert repr(links) == "chain(Noting(a), shout, only('/a.B/*', shout), only(is_health, Noting(b)))"


def is_health(method: Method) -> bool:
    return method.service == "grpc.health.v1.Health"


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ("/encryption.v1.Encryption/Encrypt", {"Encrypt"}),
        ("/encryption.v1.Encryption/*", {"Encrypt", "Decrypt"}),
        ("/encryption.v1/*", set()),
        ("/encryption.v1.Encryption/encrypt", set()),
        (is_health, {"Check"}),
        (lambda _: True, {"Encrypt", "Decrypt", "Check"}),
    ],
)
async def test_only_chooses_methods(match: str | Callable[[Method], bool], expected: set[str]) -> None:
    """A path, all of a service, or a predicate; in a chain and by itself the same."""
    link = only(match, shout)
    for method in (ENCRYPT, DECRYPT, CHECK):
        answer = "HELLO" if method.name in expected else "hello"
        assert await chain(link).around(echo, method)("hello", call(method)) == answer
        assert await link("hello", call(method), echo) == answer


@pytest.mark.parametrize(
    "path", ["", "/", "Encrypt", "a.B/C", "/a.B", "/a.B/", "//C", "/a.B/C/D", "/a.B/C/", "encryption.v1.Encryption/*"]
)
def test_only_refuses_a_path_of_another_form(path: str) -> None:
    """A path that could match nothing fails where it is written, naming it."""
    with pytest.raises(ValueError, match="only") as raised:
        only(path, shout)
    assert repr(path) in str(raised.value)


async def test_only_takes_a_chain_and_another_only() -> None:
    """Whatever is a middleware can be chosen for."""
    notes: list[str] = []
    inner = chain(Noting("a", notes), only("/encryption.v1.Encryption/Encrypt", Noting("b", notes)))
    links = chain(only(lambda method: method.name != "Check", only(lambda _: True, inner)))
    for method in (ENCRYPT, DECRYPT, CHECK):
        await links.around(echo, method)("hello", call(method))
    assert notes == ["a in", "b in", "b out", "a out", "a in", "a out"]


def test_which_methods_is_asked_when_the_chain_is_composed() -> None:
    """A predicate runs once per method and chain, not at every call; unchosen links cost nothing."""
    asked: list[str] = []

    def match(method: Method) -> bool:
        asked.append(method.name)
        return False

    assert chain(only(match, shout), only(match, shout)).around(echo, ENCRYPT) is echo
    assert asked == ["Encrypt", "Encrypt"]


class Link:
    async def __call__(self, request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
        return await next(request, call)


async def short(request: Message, call: Call) -> Message:
    return (request, call)


async def held_open(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    yield await next(request, call)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (5, "not 5"),
        (Link, "Link is a class: give Link"),
        (short, "short takes"),
        (held_open, "held_open is a generator"),
    ],
)
def test_what_is_no_middleware_is_refused_where_it_is_given(wrong: Any, told: str) -> None:  # noqa: ANN401 - whatever it is
    """By name, and with what is wrong about it: in a chain, and under ``only``."""
    with pytest.raises(TypeError, match=told):
        chain(Link(), wrong)
    with pytest.raises(TypeError, match=told):
        only("/a.B/*", wrong)


def test_what_cannot_be_looked_into_is_taken() -> None:
    """A function that takes anything may be one, and so may an object whose signature nobody knows."""
    chain(lambda *args: args[2](*args[:2]), functools.partial(shout), Link().__call__)


@pytest.mark.parametrize("wrong", [5, None])
def test_only_takes_a_path_or_a_predicate(wrong: Any) -> None:  # noqa: ANN401 - as above
    """Anything else is refused, with its value."""
    with pytest.raises(TypeError, match=f"not {wrong}"):
        only(wrong, shout)


def test_a_chain_tells_the_paths_that_its_links_are_for() -> None:
    """Also of those within others; a predicate has none."""
    inner = only("/a.B/C", shout)
    links = chain(shout, only("/a.B/*", chain(inner, echo_through)), only(lambda _: True, shout))
    assert list(links.paths()) == [("/a.B/*", shout), ("/a.B/C", shout), ("/a.B/*", echo_through)]


async def echo_through(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
    return await next(request, call)


def test_what_is_called_counts_and_not_what_it_stands_around() -> None:
    """A decorator may give what it stands around more than it takes itself; a method may be of any sort."""

    async def settled(request: Message, call: Call, next: Endpoint, settings: object) -> Message:  # noqa: A002 - the term
        return settings

    @functools.wraps(settled)
    async def link(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
        return await settled(request, call, next, "settings")

    class Static:
        @staticmethod
        async def __call__(request: Message, call: Call, next: Endpoint) -> Message:  # noqa: A002 - the term
            return await next(request, call)

    chain(link, Static(), only("/a.B/*", link))

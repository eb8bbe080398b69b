"""Whether the request makes sense: the rules that stand in its proto (protovalidate), for every message of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message as ProtoMessage
from google.rpc.error_details_pb2 import BadRequest

from servicekit.call import Call, Side
from servicekit.endpoint import Endpoint, Message
from servicekit.errors import Code, Error
from servicekit.policy.checked import flag

if TYPE_CHECKING:
    from protovalidate import Violation

_LINK: Final = "validation"
# Of what travels as status details there is some 4.5 KB, and a detail that does not fit is left out as a whole.
_ROOM: Final = 3072
_OWN_WORDS: Final = frozenset({"cel", "cel_expression"})


class Validation:
    """Lets requests pass that keep the ``buf.validate`` rules of their proto, asked of each message before anybody has it.

    A message that breaks one: INVALID_ARGUMENT, reason INVALID_REQUEST, with a ``google.rpc.BadRequest`` that has path, rule
    and description of every field that does (as many as fit; ``first_only=True`` stops at the first one). The offending
    value is in none of them, nor is a map's key: a CEL rule that makes up its text from the value is told by its name. On a
    stream the call ends with the first bad message. What is no protobuf message, or has no rules, passes.

    Default: on both sides (a client refuses before it sends), for the server's own methods too, which have no rules. Rules
    that cannot be compiled or evaluated let nothing pass: INTERNAL. Needs servicekit[validate]. Decisions of
    "validation": "invalid", once for a call.
    """

    __slots__ = ("_first_only", "_texts", "_validator")

    def __init__(self, *, first_only: bool = False) -> None:
        """Raise ImportError without the extra, TypeError for what is neither True nor False."""
        try:
            from protovalidate import Validator  # noqa: PLC0415 - so that importing servicekit needs no extra
        except ImportError as error:
            msg = "Validation needs protovalidate: pip install 'servicekit[validate]'"
            raise ImportError(msg) from error
        self._validator = Validator()
        self._first_only = flag("first_only", first_only)
        self._texts: dict[str, frozenset[str]] = {}

    async def __call__(self, request: Message, call: Call, next: Endpoint, /) -> Message:  # noqa: A002 - the term
        """Check the request, or each message of it as it comes, then run the call."""
        if call.method.kind.request_streaming:
            self._watch(call)
        elif isinstance(request, ProtoMessage) and (refusal := self._refusal(request, call)) is not None:
            if call.side is Side.CLIENT or request.ByteSize():
                call.decide(_LINK, "invalid")
                raise refusal
            self._watch(call)  # blank: if it could not be decoded, it is refused innermost for that, else by this
        return await next(request, call)

    def _watch(self, call: Call) -> None:
        def check(message: object, _size: int) -> None:
            if isinstance(message, ProtoMessage) and (refusal := self._refusal(message, call)) is not None:
                call.decide(_LINK, "invalid")
                raise refusal

        if call.side is Side.SERVER:
            call.on_received(check)
        else:
            call.on_sent(check)

    def _refusal(self, message: ProtoMessage, call: Call) -> Error | None:
        try:
            broken = self._validator.collect_violations(message, fail_fast=self._first_only)
        except Exception as error:  # noqa: BLE001 - whatever it is: what cannot be checked does not pass
            kind = type(error).__name__
        else:
            return self._bad_request(broken, cast("Descriptor", message.DESCRIPTOR), call) if broken else None
        # An evaluation's text may quote the value that it failed on.
        msg = f"the rules of {message.DESCRIPTOR.full_name} cannot be applied: {kind}"
        raise RuntimeError(msg)

    def _bad_request(self, broken: Sequence[Violation], descriptor: Descriptor, call: Call) -> Error:
        detail = BadRequest()
        first = ""
        for violation in broken:
            path, text = _path(violation), self._text(violation, descriptor)
            first = first or (f"{path}: {text}" if path else text)
            detail.field_violations.add(field=path, description=text, reason=violation.proto.rule_id)
            if detail.ByteSize() > _ROOM:
                del detail.field_violations[-1]
                break
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        refused = call.side is Side.CLIENT
        return Error(
            Code.INVALID_ARGUMENT,
            first + more,
            reason="INVALID_REQUEST",
            details=[detail],
            begun=not refused,
            refused=refused,
        )

    def _text(self, violation: Violation, descriptor: Descriptor) -> str:
        """Return what the rule says, if it says the same whatever the value is; else its name."""
        proto, rule = violation.proto, violation.rule_value
        names = [element.field_name for element in proto.rule.elements] if proto.rule is not None else []
        if not names:  # a rule of the message: the library's own, or CEL
            fixed = proto.rule_id in {"required", "message.oneof"} or proto.message in self._said_by(descriptor)
        elif not _OWN_WORDS.isdisjoint(names):
            fixed = proto.message in {getattr(rule, "message", ""), _returned_false(getattr(rule, "expression", rule))}
        else:
            fixed = not any(name.startswith("[") for name in names)  # an extension: predefined rules are CEL too
        return proto.message if fixed and proto.message else f"breaks the rule {proto.rule_id}"

    def _said_by(self, descriptor: Descriptor) -> frozenset[str]:
        """Return the fixed texts of the CEL rules of a message and of all that it is made of."""
        texts = self._texts.get(descriptor.full_name)
        if texts is None:
            texts = self._texts[descriptor.full_name] = frozenset(_texts_of(descriptor, set()))
        return texts

    def __repr__(self) -> str:
        """Return the setting."""
        return f"Validation(first_only={self._first_only})"


def _path(violation: Violation) -> str:
    field = violation.proto.field
    parts = []
    for element in field.elements if field is not None else ():
        subscript = element.subscript
        if subscript is None:
            parts.append(element.field_name)
        elif subscript.field == "index":
            parts.append(f"{element.field_name}[{subscript.value}]")
        else:
            parts.append(f"{element.field_name}[*]")  # a map's key is the client's own value
    return ".".join(parts)


def _texts_of(descriptor: Descriptor, seen: set[str]) -> set[str]:
    if descriptor.full_name in seen:
        return set()
    seen.add(descriptor.full_name)
    texts = set()
    for extension, rules in descriptor.GetOptions().ListFields():
        if extension.full_name == "buf.validate.message":
            texts |= {rule.message or _returned_false(rule.expression) for rule in rules.cel}
            texts |= {_returned_false(expression) for expression in rules.cel_expression}
    for field in descriptor.fields:
        if field.message_type is not None:
            texts |= _texts_of(field.message_type, seen)
    return texts


def _returned_false(expression: object) -> str:
    # What the engine says when a rule brings no text of its own.
    return f'"{expression}" returned false'

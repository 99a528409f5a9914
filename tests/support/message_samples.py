"""One example of every message, with nothing left at its default."""

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from penstock.protocol.messages import Message


def sample(kind: Any) -> Any:
    """A value of a message's field with nothing left at its default."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return arguments[-1]
    if origin in (Union, UnionType):
        return sample(arguments[0])
    if origin is dict:
        return {sample(arguments[0]): sample(arguments[1])}
    if origin in (list, tuple):
        return origin([sample(arguments[0])] * 2)
    if issubclass(kind, msgspec.Struct):
        hints = get_type_hints(kind)
        return kind(**{name: sample(hints[name]) for name in kind.__struct_fields__})
    return {int: (1 << 64) - 1, float: -0.5, str: "\u00e9\n", bytes: b"\x00\xff", bool: True}[kind]


MESSAGES: list[Message] = [sample(kind) for kind in get_args(Message)]

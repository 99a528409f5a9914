"""Fields of a configuration: what may stand in one, and the sentence where something else does."""

import difflib
import re
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

Table = TypeVar("Table", bound=Struct)

Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
Count = Annotated[int, Meta(ge=0)]
Seconds = Annotated[float, Meta(gt=0.0, le=86400.0)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Device = Annotated[str, Meta(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]


class ConfigError(Exception):
    """The configuration cannot be used; the text names the key, its place, and what would work."""


def convert(content: Any, kind: type[Table], section: str, place: str) -> Table:
    for key in content:
        if key not in kind.__struct_fields__:
            raise ConfigError(
                f"{place}: {unknown(key, list(kind.__struct_fields__), f'{section} has no key')}"
            )
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        text, _, path = str(error).partition(" - at `$.")
        key = re.split(r"[^A-Za-z0-9_]", path)[0]
        given = msgspec.json.encode(content.get(key)).decode()
        wanted = _wanted(kind, key) or text.replace("`", "").replace("Expected", "expected")
        raise ConfigError(f"{place}: {section} {key} = {given}: {wanted}") from None


def unknown(key: str, known: list[str], complaint: str) -> str:
    near = difflib.get_close_matches(key, known, 1)
    remedy = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known)}"
    return f"{complaint} {key!r}; {remedy}"


def _wanted(kind: type[Struct], key: str) -> str:
    """What may stand there, where msgspec's own sentence does not tell."""
    hint = get_type_hints(kind, include_extras=True)[key]
    if get_origin(hint) is Literal:
        return f"expected one of {', '.join(get_args(hint))}"
    return {
        Name: "expected letters, digits, '-', '_' and '.', beginning with a letter or digit",
        Device: "expected auto, cpu, cuda or cuda:N",
    }.get(hint, "")

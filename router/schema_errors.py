"""Why a body could not be read, in a sentence that names the field or the place. Pure.

The decoder says where in its own words; here they become a field for `param` and a sentence.
"""

import re

import msgspec

from .openai_error import ApiError, quote

_PATH = re.compile(r" - at `(?:key` in `)?\$\.?([^`]*)`$")
_MISSING = re.compile(r"missing required field `([^`]+)`")
_EXPECTED = re.compile(r"Expected `([^`]+)`, got `([^`]+)`")
_AT_BYTE = re.compile(r"^(?:JSON is malformed: )?(.*?) \(byte (\d+)\)$")
_KEY = re.compile(rb'"((?:[^"\\]|\\.){1,64})"\s*:')
_LONE_SURROGATE = re.compile(
    rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])"
    rb"|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F]"
)
# How far before a fault the nearest key is looked for.
LOOK_BACK = 4096

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def explain(error: Exception, data: bytes | bytearray) -> ApiError:
    """The 400 for a body that did not decode."""
    if isinstance(error, RecursionError):
        return ApiError("the body is nested too deeply")
    if isinstance(error, msgspec.ValidationError):
        return _wrong_type(str(error))
    if isinstance(error, UnicodeDecodeError):
        return _not_utf8(bytes(data))
    return _malformed(str(error), data)


def _wrong_type(text: str) -> ApiError:
    path = _PATH.search(text)
    param = path[1] if path else ""
    if missing := _MISSING.search(text):
        param = f"{param}.{missing[1]}" if param else missing[1]
        return ApiError(f"{quote(param)} is missing; it is required", param)
    named = quote(param) if param and param != "[...]" else "a value in the body"
    param = param if param != "[...]" else ""
    named = f"a key of {named}" if "at `key` in" in text else named
    if expected := _EXPECTED.search(text):
        wanted = [_WORDS.get(word, word) for word in expected[1].split(" | ")]
        got = _WORDS.get(expected[2], expected[2])
        if not param:
            return ApiError(f"the body must be {' or '.join(wanted)}, not {got}")
        return ApiError(f"{named} must be {' or '.join(wanted)}, not {got}", param)
    if "out of range" in text:
        return ApiError(f"{named} is out of range", param or None)
    sentence = _PATH.sub("", text)
    return ApiError(f"{named}: {sentence}", param or None)


def _not_utf8(data: bytes) -> ApiError:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        where = _near(data, error.start)
        return ApiError(f"the body is not valid UTF-8 at byte {error.start}{where}")
    return ApiError("the body is not valid UTF-8")


def _malformed(text: str, data: bytes | bytearray) -> ApiError:
    if not data:
        return ApiError("the body is empty; a JSON object was expected")
    if found := _AT_BYTE.match(text):
        at = int(found[2])
        return ApiError(f"the body is not valid JSON: {found[1]} at byte {at}{_near(data, at)}")
    if surrogate := _LONE_SURROGATE.search(data):
        at = surrogate.start()
        return ApiError(f"a lone surrogate escape at byte {at}{_near(data, at)}")
    at = len(data)
    return ApiError(f"the body is not valid JSON: it ends too early, at byte {at}{_near(data, at)}")


def _near(data: bytes | bytearray, at: int) -> str:
    """`, after the key "x"` for the nearest key before a place, if there is one."""
    keys = _KEY.findall(data, max(0, at - LOOK_BACK), at)
    if not keys:
        return ""
    return f', after the key "{quote(keys[-1].decode(errors="replace"))}"'

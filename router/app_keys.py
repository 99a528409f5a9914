"""API keys: who may ask. Pure but for reading a file."""

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

SCHEME = b"bearer "


class Keys:
    """Keeps digests, never the keys; with no key everybody may ask."""

    def __init__(self, keys: Iterable[str] = ()):
        self._digests = [_digest(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def allow(self, authorization: bytes) -> bool:
        """Compares against every key in full, so that time tells nothing about any."""
        if not self._digests:
            return True
        given = _given(authorization)
        found = False
        for digest in self._digests:
            found |= hmac.compare_digest(digest, given)
        return found

    def salt(self, authorization: bytes) -> str:
        """Differs between keys: the time of a cached prefix shall tell no one what others sent."""
        return _given(authorization).hex()[:16] + ":" if self._digests else ""


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _given(authorization: bytes) -> bytes:
    if authorization[: len(SCHEME)].lower() != SCHEME:
        return _digest(b"")
    return _digest(authorization[len(SCHEME) :].strip())


def read_keys(listed: str = "", file: Path | None = None) -> list[str]:
    """Keys from a comma-separated list and from a file (one per line, # begins a comment)."""
    keys = [one.strip() for one in listed.split(",")]
    if file is not None:
        keys += [line.split("#")[0].strip() for line in file.read_text().splitlines()]
    keys = [one for one in keys if one]
    if file is not None and not keys:
        raise ValueError(f"{file} holds no key: nobody could ask, or everybody")
    return keys

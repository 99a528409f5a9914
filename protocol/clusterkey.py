"""The cluster key: one CURVE key pair that every process of a cluster holds.

Whoever holds the file may speak to every worker, and through the transfer plane may write to
its memory, so the file is private to the user who runs the cluster.
"""

import os
import stat
import tomllib
from pathlib import Path

import msgspec
import zmq

_FORBIDDEN_MODE = stat.S_IWGRP | stat.S_IRWXO  # a group may read: container secrets are mounted so
_Z85_LENGTH = 40  # 32 bytes in Z85


class ClusterKeyError(Exception):
    """The key file cannot be used; the text says why and what would work."""


class ClusterKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Both halves as Z85 text."""

    public: str
    secret: str

    @property
    def curve(self) -> tuple[bytes, bytes]:
        """Public and secret half, as ZeroMQ takes them."""
        return self.public.encode(), self.secret.encode()


def write_key(path: Path) -> ClusterKey:
    """Make a new key pair in a new file that only this user can read."""
    public, secret = (half.decode() for half in zmq.curve_keypair())
    text = (
        "# The key of one Penstock cluster. Every process needs this file; nobody else may.\n"
        f'public = "{public}"\nsecret = "{secret}"\n'
    )
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ClusterKeyError(
            f"{path} exists; a cluster key is never overwritten, name another file"
        ) from None
    except OSError as error:
        raise ClusterKeyError(f"{path} cannot be made: {error.strerror}") from None
    with open(descriptor, "w") as file:
        file.write(text)
    return ClusterKey(public, secret)


def read_key(path: Path) -> ClusterKey:
    """The key pair in a file. Raises ClusterKeyError, also where others may read the file."""
    try:
        mode = path.stat().st_mode
        text = path.read_text()
    except (OSError, UnicodeError) as error:
        raise ClusterKeyError(
            f"key file {path} cannot be read ({error}); make one with: penstock keygen {path}"
        ) from None
    if mode & _FORBIDDEN_MODE:
        raise ClusterKeyError(f"key file {path} is open to others; run: chmod 600 {path}")
    try:
        key = msgspec.convert(tomllib.loads(text), ClusterKey)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ClusterKeyError(f"{path} is no cluster key: {error}") from None
    if _public_of(key.secret) != key.public:
        raise ClusterKeyError(f"{path} is no cluster key: its two halves do not belong together")
    return key


def _public_of(secret: str) -> str:
    if len(secret) != _Z85_LENGTH:
        return ""
    try:
        return zmq.curve_public(secret.encode()).decode()
    except (zmq.ZMQError, UnicodeError, ValueError):
        return ""

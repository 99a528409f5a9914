"""The cluster key's file: private, never overwritten, refused with a sentence."""

from pathlib import Path

import pytest

from penstock.protocol.clusterkey import ClusterKeyError, read_key, write_key


def test_key_files(tmp_path: Path) -> None:
    path = tmp_path / "key"
    key = write_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key(path) == key
    with pytest.raises(ClusterKeyError, match="never overwritten"):
        write_key(path)
    with pytest.raises(ClusterKeyError, match="cannot be made"):
        write_key(tmp_path / "no" / "key")
    path.chmod(0o644)
    with pytest.raises(ClusterKeyError, match="chmod 600"):
        read_key(path)
    with pytest.raises(ClusterKeyError, match="penstock keygen"):
        read_key(tmp_path / "absent")
    for text in ("", "public = 1", f'public = "{key.public}"\nsecret = "{"0" * 40}"', "\0"):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(ClusterKeyError, match="is no cluster key"):
            read_key(path)

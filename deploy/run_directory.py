"""The private folder of one running cluster: its resolved configuration lies there."""

import os
import re
import shutil
import tempfile
from pathlib import Path

_NAME = re.compile(r"penstock-(\d+)-\w+")


def make_run_directory() -> Path:
    """Only this user can read it. Folders of supervisors that were killed are swept on the way."""
    for folder in Path(tempfile.gettempdir()).glob("penstock-*"):
        if (match := _NAME.fullmatch(folder.name)) and not _alive(int(match[1])):
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"penstock-{os.getpid()}-"))


def remove_run_directory(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

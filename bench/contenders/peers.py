"""Peers as contenders: a child in an interpreter of its own, one line of JSON per batch.

The scripts import nothing of ours, so that the interpreter may be another environment's.
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from .contender import Contender, ContenderError, Work

SCRIPTS = Path(__file__).resolve().parent
# torch's OpenMP, and no model is ever fetched.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


class Child(Contender):
    """A script that answers each Work with its seconds."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.process = process
        self.version = str(self._answer()["version"])

    @property
    def pid(self) -> int:
        return self.process.pid

    def run(self, work: Work) -> float:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(asdict(work)).encode() + b"\n")
        self.process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, str | float]:
        """The next line that is ours; libraries print on standard output too."""
        assert self.process.stdout
        for line in self.process.stdout:
            if line.startswith(b'{"penstock bench": '):
                return json.loads(line)["penstock bench"]
        raise ContenderError(f"{self.name} ended with {self.process.wait()}")


@contextmanager
def peer(name: str, python: str, model: Path, threads: int) -> Iterator[Child]:
    """`name`: a script of this folder, run by that interpreter; ready when this yields."""
    environment = {**os.environ, **OFFLINE, "OMP_NUM_THREADS": str(threads)}
    environment.pop("PYTHONPATH", None)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [python, str(SCRIPTS / f"{name}_script.py"), str(model), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
        )
        try:
            yield Child(name, process)
        except ContenderError as error:
            log.seek(0)
            raise ContenderError(
                f"{error}\n{log.read().decode(errors='replace')[-2000:]}"
            ) from None
        finally:
            assert process.stdin and process.stdout
            process.stdin.close()
            process.stdout.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

"""One end of one method as a process.

    python -P -m penstock.bench.planes.end SPEC

is a child of `bench kv`, told what to do on stdin.
"""

import json
import sys

from .bare import KINDS
from .bursts import HolderBurst, ReaderBurst
from .child import Commands, End, Words, drive
from .sequence import Sequence


def end_of(spec: Words, commands: Commands) -> End:
    if spec["plane"] in KINDS:
        return KINDS[spec["plane"]](spec, commands)
    if spec["plane"] == "sequence":
        return Sequence(spec, commands)
    return (HolderBurst if spec["side"] == "holder" else ReaderBurst)(spec, commands)


if __name__ == "__main__":
    # NIXL's package imports torch to learn its CUDA version: a second of work, and there is none
    # in host memory.
    sys.modules["torch"] = None  # type: ignore[assignment]
    told = Commands()
    drive(end_of(json.loads(sys.argv[1]), told), told)

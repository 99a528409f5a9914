"""A role without a model. What it does is told by FAKE_<name> in the environment:

(nothing)   gets ready, then waits until it is told to stop
fail        says why it cannot start
crash       ends before it is ready, without a word to the supervisor
stubborn    gets ready and ignores SIGTERM
family      gets ready, and has a child of its own that ignores SIGTERM
"""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

from penstock.protocol.config import load
from penstock.protocol.lifeline import report


def main(role: str, file: str, name: str) -> int:
    told = report(name)
    told.catch_signals()
    behaviour = os.environ.get(f"FAKE_{name.replace('-', '_')}", "")
    print(f"{role} {name} is process {os.getpid()}")
    config = load(Path(file))
    assert name in (config.router.name, *config.workers)
    if behaviour == "fail":
        told.failed("no such weights")
        return 1
    if behaviour == "crash":
        print("Segmentation fault, more or less")
        os._exit(3)
    if behaviour == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if behaviour == "family":
        deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1); time.sleep(600)"
        kin = subprocess.Popen([sys.executable, "-uc", deaf], stdout=subprocess.PIPE)
        assert kin.stdout is not None and kin.stdout.readline()
        print(f"kin of {name} is process {kin.pid}")
    for done in range(0, 101, 10):
        told.progress(done, 100)
    told.ready(kernels="fake", numeric_class="one" if name != "odd" else "two")
    while not told.stopping:
        select.select(told.filenos(), [], [])
    print(f"{name} ends")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:4]))

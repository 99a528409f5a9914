"""A worker that only a new start can help says why and ends, whatever hangs inside it."""

import subprocess
import sys
import time
from pathlib import Path

from penstock.engine.station import RESTART_STATUS
from penstock.protocol.messages import Drain, Status
from penstock.protocol.seams import Received
from penstock.protocol.sockets import Mailbox

SCRIPT = Path(__file__).parent.parent / "support" / "stuck_worker.py"
PATIENCE = 120.0


def test_a_step_that_hangs_ends_the_process_after_the_routers_were_told():
    router = Mailbox("router")
    worker = subprocess.Popen(
        [sys.executable, SCRIPT, router.me.endpoint], stderr=subprocess.PIPE, text=True
    )
    try:
        told, limit = [], time.monotonic() + PATIENCE
        while not told or not isinstance(told[-1], Drain):
            assert time.monotonic() < limit, told
            router.wait(0.1)
            told += [one.message for one in router.receive() if isinstance(one, Received)]
        _, errors = worker.communicate(timeout=PATIENCE)
    finally:
        worker.kill()
        worker.communicate()
        router.close()
    assert worker.returncode == RESTART_STATUS
    stuck = [one.stuck for one in told if isinstance(one, Status) and one.stuck]
    assert stuck and all(one.startswith("engine: a step has been running for") for one in stuck)
    assert "failed: engine: a step has been running for" in errors

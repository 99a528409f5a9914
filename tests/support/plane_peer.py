"""A peer for the plane tests: a real process with pages, driven by lines of JSON on stdin.

Started as `plane_peer.py PLANE PAGE_BYTES PAGE_COUNT SEED [PUBLIC SECRET]`. Commands: `metadata`;
`rewrite` (raise the page's generation, then fill it anew); `deaf` (stop making progress until
the next command); `exit` (close the plane and report what is left behind).
"""

import json
import os
import select
import sys

from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.open import open_plane
from penstock.kvtransfer.plane import PlaneSettings


def pattern(seed: int, page: int, generation: int, page_bytes: int) -> bytes:
    """What a page holds: different for every seed, page and generation, and for every offset."""
    unit = b"%08d:%08d:%08d|" % (seed, page, generation)
    return (unit * (page_bytes // len(unit) + 1))[:page_bytes]


def what_is_open() -> list[str]:
    """This process's threads and files, but for UCX's log, which lives as long as the library."""
    found = ["thread"] * len(os.listdir("/proc/self/task"))
    for file in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{file}"))
        except FileNotFoundError:  # the listing's own
            continue
    return sorted(name for name in found if "ucx-log" not in name)


def main(arguments: list[str]) -> int:
    name, page_bytes, page_count, seed, *keys = arguments
    before = what_is_open()
    memory = HostMemory(int(page_bytes), int(page_count))
    for page in range(int(page_count)):
        memory.page(page)[:] = pattern(int(seed), page, 0, int(page_bytes))
    curve = (keys[0].encode(), keys[1].encode()) if keys else None
    settings = PlaneSettings(memory.memory, f"peer-{os.getpid()}", curve=curve)
    plane = open_plane(name, settings)
    deaf = False
    pending = b""
    while True:
        ready = select.select([0], [], [], None if deaf else 0.0002)[0]
        if not deaf:
            plane.progress()
        if not ready:
            continue
        received = os.read(0, 1 << 16)
        if not received:
            os._exit(1)  # the test is gone
        pending += received
        while b"\n" in pending:
            line, _, pending = pending.partition(b"\n")
            command = json.loads(line)
            deaf = command["do"] == "deaf"
            answer: dict[str, object] = {}
            match command["do"]:
                case "metadata":
                    answer["metadata"] = plane.metadata().hex()
                    answer["refused"] = getattr(plane, "refused", 0)
                case "rewrite":
                    page = command["page"]
                    memory.generations[page] += 1
                    generation = memory.generations[page]
                    memory.page(page)[:] = pattern(int(seed), page, generation, int(page_bytes))
                case "exit":
                    plane.close()
                    memory.close()
                    answer["before"], answer["after"] = before, what_is_open()
            print(json.dumps(answer), flush=True)
            if command["do"] == "exit":
                return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

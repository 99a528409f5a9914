"""The pages of a worker: one file on a CPU, mapped by others, and safe to let go."""

import fcntl
import gc
import mmap
import os
import subprocess
import sys

import pytest
import torch

from penstock.engine.paged_memory import PagedMemory, PageLayout, pages_within
from penstock.kvtransfer.host_memory import HostMemory
from penstock.kvtransfer.open import open_plane
from penstock.kvtransfer.plane import PlaneSettings

LAYOUT = PageLayout(layers=3, sides=2, groups=2, slots=8, head=16, dtype=torch.bfloat16)


def test_layout_and_description() -> None:
    memory = PagedMemory(LAYOUT, 5)
    assert LAYOUT.page_bytes == 3 * 2 * 2 * 8 * 16 * 2
    assert str(LAYOUT) == "PLCGSH 3x2x2x8x16"
    pages, told = memory.pages_PLCGSH, memory.description
    assert pages.shape == (5, 3, 2, 2, 8, 16) and pages.is_contiguous()
    assert (told.device, told.page_count, told.page_bytes) == ("cpu", 5, LAYOUT.page_bytes)
    assert told.pages_address == pages.data_ptr()
    assert told.pages_offset % mmap.PAGESIZE == 0
    assert told.pages_address - told.generations_address == told.pages_offset
    assert not pages.any()
    memory.close()


def test_another_mapping_of_the_file_sees_pages_and_generations() -> None:
    memory = PagedMemory(LAYOUT, 5)
    told = memory.description
    assert memory.generations.format == "Q" and len(memory.generations) == 5
    memory.generations[3] = 2**63 + 7
    memory.pages_PLCGSH[4] = 1.5
    other = mmap.mmap(os.dup(told.file), told.pages_offset + told.total_bytes)
    assert memoryview(other).cast("Q")[3] == 2**63 + 7
    whole = torch.frombuffer(other, dtype=torch.bfloat16, offset=told.pages_offset)
    per_page = told.page_bytes // 2
    assert whole[4 * per_page :].eq(1.5).all() and not whole[: 4 * per_page].any()
    memory.close()


def test_views_outlive_close() -> None:
    memory = PagedMemory(LAYOUT, 5)
    pages, generations = memory.pages_PLCGSH, memory.generations
    assert generations is not None
    memory.close()
    memory.close()
    pages.fill_(2.0)
    generations[0] = 9
    assert pages.eq(2.0).all() and generations[0] == 9 and memory.file == -1


def test_nobody_can_change_the_size_of_the_file() -> None:
    """A peer's mapping would end in nothing, and its next look would kill it (SIGBUS)."""
    memory = PagedMemory(LAYOUT, 5)
    size = os.fstat(memory.file).st_size
    peers = os.open(f"/proc/{os.getpid()}/fd/{memory.file}", os.O_RDWR | os.O_CLOEXEC)
    for file in (memory.file, peers):
        for other in (0, size - 1, size + 4096):
            with pytest.raises(PermissionError):
                os.ftruncate(file, other)
        with pytest.raises(PermissionError):
            fcntl.fcntl(file, fcntl.F_ADD_SEALS, 0)  # nor seal it for writing
    assert os.fstat(peers).st_size == size
    os.close(peers)
    memory.close()


@pytest.mark.parametrize("choice", ["shm", "tcp", "zmq"])
def test_pages_stay_mapped_under_a_plane_that_outlives_their_owner(choice: str) -> None:
    """What a peer may still read by its lease is not unmapped, whoever lets go first."""
    memory = PagedMemory(LAYOUT, 5)
    memory.pages_PLCGSH.fill_(3.0)
    description = memory.description
    plane = open_plane(choice, PlaneSettings(description, "outlives"))
    metadata = plane.metadata()
    target = HostMemory(description.page_bytes, 5)
    reader = open_plane(choice, PlaneSettings(target.memory, "reads"))
    reader.add_peer("tcp://peer:1", 1, metadata)
    memory.close()
    del memory, description
    gc.collect()
    reader.read("tcp://peer:1", [4], [1])
    while not (ended := reader.progress()):
        plane.progress()
    assert ended[0].failed == ""
    assert torch.frombuffer(bytearray(target.page(1)), dtype=torch.bfloat16).eq(3.0).all()
    reader.close()
    plane.close()
    target.close()


def test_ending_without_close_is_quiet() -> None:
    code = (
        "import torch\n"
        "from penstock.engine.paged_memory import PagedMemory, PageLayout\n"
        "memory = PagedMemory(PageLayout(1, 2, 1, 8, 16, torch.float32), 100)\n"
        "pages = memory.pages_PLCGSH.fill_(1)\n"
        "kept = [pages[3], memory.generations[2:]]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_budget() -> None:
    layout = LAYOUT
    assert pages_within(10 * layout.page_bytes + 4096 + 80, layout) == 10
    assert pages_within(10 * layout.page_bytes + 4096 + 79, layout) == 9
    with pytest.raises(ValueError, match="no page"):
        PagedMemory(layout, pages_within(0, layout))

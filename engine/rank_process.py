"""A follower: holds some shards of the model and runs the steps that its leader sends.

Ends with its leader, however that ends: the stream closes, and where the system can, the process is
killed with the thread that started it. Signals that people send to a whole group of processes are
the leader's to understand.
"""

import signal
import socket
import sys
from pathlib import Path

import torch

from ..kernels.choice import choose
from ..models.fields import ModelError
from ..models.registry import Model, load_model
from ..models.shards import Shards
from ..protocol.lifeline import die_with_parent
from .batch import batch_of
from .paged_memory import PageLayout, mapped_pages
from .rank_group import RankGroup
from .rank_words import Done, Ended, Line, Loaded, Pages, Ready, Refused, Setup


def main(descriptor: int) -> None:
    die_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    line = Line(socket.socket(fileno=descriptor))
    try:
        follow(line)
    except Ended:
        pass
    except (ModelError, ValueError, RuntimeError, OSError) as error:
        try:
            line.send(Refused(f"{type(error).__name__}: {error}"))
        except Ended:
            pass


def follow(line: Line) -> None:
    """Raises Ended when the leader is done."""
    setup = line.receive(Setup)
    torch.set_num_threads(setup.threads)
    kernels = choose("cpu", setup.kernels)
    dtype = getattr(torch, setup.dtype)
    group = RankGroup(setup.rank, setup.ranks)
    shards = Shards.of_rank(setup.shards, setup.rank, setup.ranks, group.gather)
    loaded = load_model(Path(setup.model), kernels, dtype, shards=shards, head=False)
    line.send(Loaded(kernels.digest))
    pages, file = line.receive_with_file(Pages)
    layout = PageLayout.of(loaded.config.blueprint, setup.page_slots, dtype)
    pages_PLCGSH = mapped_pages(file, layout, pages.count)
    group.join(Path(setup.meeting), setup.seconds)
    line.send(Ready())
    with torch.inference_mode():
        while True:
            run_step(line, loaded.model, pages_PLCGSH)


def run_step(line: Line, model: Model, pages_PLCGSH: torch.Tensor) -> None:
    """What the kernels refuse they refuse on every rank alike; the leader compares."""
    counts, words = line.receive_batch()
    try:
        model.forward(batch_of(torch.from_numpy(words), counts), pages_PLCGSH)
    except Exception as error:
        line.send(Done(f"{type(error).__name__}: {error}"))
    else:
        line.send(Done())


if __name__ == "__main__":
    main(int(sys.argv[1]))

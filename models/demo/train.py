"""Train the demo model on a CPU, in steps that can be stopped and taken up again at any time.

    python -m penstock.models.demo.train --prompts DIR --steps 3000 --decay 600

The rate warms up, stays, and falls to zero over the last `decay` steps. Until the fall begins
any later end can be chosen; the state from before the fall is kept as stable.pt, so training can
go on from there. SIGTERM and Ctrl-C save the state before they end the run.
"""

import argparse
import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .architecture import Decoder, Shape, training_loss
from .corpus import load_sources
from .curve import append, truncate
from .export import read_weights
from .optimizer import build_optimizers, set_rate
from .rows import Rows, held_out_rows, prepare

HERE = Path(__file__).parent
WARMUP_STEPS = 60
LONG_EVERY = 8  # one step in eight takes long rows
SAVE_EVERY = 200
REPORT_EVERY = 20
WATCH_EVERY = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, at which rate and on what rows."""

    steps: int
    decay: int
    short: tuple[int, int] = (8, 512)  # rows, positions
    long: tuple[int, int] = (2, 2048)
    seed: int = 1

    def rate_share(self, step: int) -> float:
        """Share of the full learning rate at `step`, in (0, 1]."""
        falling = (self.steps - step) / self.decay if self.decay else 1.0
        return min(1.0, (step + 1) / WARMUP_STEPS, falling)

    def rows(self, step: int) -> tuple[int, int]:
        return self.long if step % LONG_EVERY == LONG_EVERY - 1 else self.short


@dataclass(slots=True)
class Run:
    """Everything a step changes; saved and restored as a whole."""

    model: Decoder
    optimizers: list[torch.optim.Optimizer]
    rows: Rows
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    recent: list[float] = field(default_factory=list)  # losses since the last report

    @classmethod
    def start(cls, shape: Shape, rows: Rows, seed: int) -> "Run":
        model = Decoder(shape, seed)
        return cls(model, build_optimizers(model), rows)

    def advance(self, plan: Plan) -> float:
        """One optimizer step; the loss in nats per token."""
        begun = time.monotonic()
        inputs_BS, targets_BS = self.rows.batch(self.step, *plan.rows(self.step))
        set_rate(self.optimizers, plan.rate_share(self.step))
        loss = training_loss(self.model, inputs_BS, targets_BS)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        self.tokens += inputs_BS.numel()
        self.seconds += time.monotonic() - begun
        self.recent.append(loss.item())
        return self.recent[-1]

    def save(self, path: Path) -> None:
        """Write the state beside its place and move it there, so no reader sees half a file."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "taken": self.rows.taken,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "recent": self.recent,
        }
        unfinished = path.with_suffix(".unfinished")
        torch.save(state, unfinished)
        os.replace(unfinished, path)

    def restore(self, path: Path) -> None:
        state = torch.load(path, weights_only=True)
        self.model.load_state_dict(state["model"])
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            # Rates come from the code, so a resumed run may change them.
            for group, current in zip(stored["param_groups"], optimizer.param_groups, strict=True):
                group["full_lr"] = current["full_lr"]
            optimizer.load_state_dict(stored)
        self.rows.taken = dict(state["taken"])
        self.step, self.tokens = state["step"], state["tokens"]
        self.seconds, self.recent = state["seconds"], list(state["recent"])


@torch.no_grad()
def watch(model: Decoder, rows: tuple[Tensor, Tensor]) -> float:
    """Mean held-out loss in nats per token, row by row to stay small."""
    losses = [training_loss(model, x[None], y[None]).item() for x, y in zip(*rows, strict=True)]
    return sum(losses) / len(losses)


def report(run: Run, plan: Plan, curve: Path, held_out: float | None) -> None:
    """One line of the loss curve, printed too."""
    loss = sum(run.recent) / len(run.recent)
    run.recent.clear()
    append(curve, run, plan.rate_share(run.step - 1), loss, held_out)
    shown = "" if held_out is None else f", held out {held_out:.4f}"
    speed = run.tokens / run.seconds
    print(f"step {run.step}: loss {loss:.4f}{shown}, {speed:,.0f} tokens/s", flush=True)


def train(run: Run, plan: Plan, work: Path, curve: Path) -> None:
    """Steps up to the plan's end; stops early, with the state saved, when told to."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _: stopping.append(received))
    watched = held_out_rows(work, 512, 2)
    while run.step < plan.steps and not stopping:
        if plan.decay and run.step == plan.steps - plan.decay:
            run.save(work / "stable.pt")
        run.advance(plan)
        if run.step % REPORT_EVERY == 0 or run.step == plan.steps:
            due = run.step % WATCH_EVERY == 0 or run.step == plan.steps
            report(run, plan, curve, watch(run.model, watched) if due else None)
        if run.step % SAVE_EVERY == 0:
            run.save(work / "latest.pt")
    run.save(work / "latest.pt")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="train the demo model")
    parser.add_argument("--prompts", type=Path, help="folder with the public prompt files")
    parser.add_argument("--steps", type=int, default=3000, help="last step, of 4,096 tokens each")
    parser.add_argument("--decay", type=int, default=600, help="steps of falling rate at the end")
    parser.add_argument("--work", type=Path, default=HERE / "work", help="streams and states")
    parser.add_argument("--curve", type=Path, default=HERE / "loss_curve.csv")
    parser.add_argument("--state", default="latest.pt", help="file in the work folder to resume")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="a fifth faster after a minute")
    parser.add_argument(
        "--from-shipped", action="store_true", help="start with the shipped weights, step 0"
    )
    return parser.parse_args()


def main() -> None:
    arguments, work = parse(), parse().work
    torch.set_num_threads(arguments.threads)
    plan = Plan(arguments.steps, arguments.decay)
    shape = Shape()
    shipped = HERE / "checkpoint"
    if not (work / "streams.npz").exists():
        sources = load_sources(arguments.prompts)
        prepare(sources, work, shipped / "tokenizer.json", shape.vocabulary, plan.seed)
    run = Run.start(shape, Rows.load(work, plan.seed), plan.seed)
    if (work / arguments.state).exists():
        run.restore(work / arguments.state)
        print(f"resumed at step {run.step}", flush=True)
    elif arguments.from_shipped:
        run.model.load_state_dict(read_weights(shipped / "model.safetensors"))
    truncate(arguments.curve, run.step)
    if arguments.compile:
        for layer in run.model.layers:  # one layer is compiled, the others share its code
            layer.compile(dynamic=False)
    train(run, plan, work, arguments.curve)


if __name__ == "__main__":
    main()

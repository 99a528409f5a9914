"""The loss curve: rows in a CSV file, and the picture of them.

python -m penstock.models.demo.curve
"""

import csv
from pathlib import Path
from typing import Protocol

COLUMNS = ("step", "tokens", "seconds", "rate_share", "loss", "held_out_loss")
HERE = Path(__file__).parent


class Progress(Protocol):
    """What the curve needs to know of a run."""

    step: int
    tokens: int
    seconds: float


def append(
    path: Path, progress: Progress, rate_share: float, loss: float, held_out: float | None
) -> None:
    """Add one row; losses in nats per token, the held-out one only where it was measured."""
    fresh = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        if fresh:
            writer.writerow(COLUMNS)
        measured = "" if held_out is None else f"{held_out:.4f}"
        writer.writerow(
            (progress.step, progress.tokens, f"{progress.seconds:.0f}", f"{rate_share:.4f}",
             f"{loss:.4f}", measured)
        )  # fmt: skip


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def truncate(path: Path, step: int) -> None:
    """Drop rows after `step`: a resumed run writes them again."""
    if not path.exists():
        return
    kept = [row for row in read(path) if int(row["step"]) <= step]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows([row[column] for column in COLUMNS] for row in kept)


def draw(source: Path, target: Path) -> None:
    """Training and held-out loss over millions of tokens."""
    import matplotlib

    matplotlib.use("svg")
    # A fixed salt and no date, so that the same numbers give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "demo"
    from matplotlib import pyplot

    rows = read(source)
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    axes.plot(
        [int(row["tokens"]) / 1e6 for row in rows],
        [float(row["loss"]) for row in rows],
        linewidth=1,
        label="training, mean of 20 steps",
    )
    watched = [row for row in rows if row["held_out_loss"]]
    axes.plot(
        [int(row["tokens"]) / 1e6 for row in watched],
        [float(row["held_out_loss"]) for row in watched],
        marker="o",
        markersize=3,
        label="held out, mean of all sources",
    )
    axes.set_xlabel("million tokens")
    axes.set_ylabel("loss, nats per token")
    axes.set_ylim(0, 5)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(target, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw(HERE / "loss_curve.csv", HERE / "loss_curve.svg")

"""What saving a run costs: ``python -m benchmarks.saving``.

The main job's net is trained on rows of Fashion-MNIST (tensors, batch 128, no workers) with and
without run checkpoints, in turn, with a save every few steps. Training waits while the state is
copied, and shares the processor with the thread that writes; both are in the difference. From it
follows what one save a minute costs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.machine import describe_machine
from hotloop.experiments.image_classifier import make_model


def train(data: TensorDataset, every: int | None, epochs: int) -> tuple[float, int]:
    """Train once; return seconds, and how often the run was saved."""
    torch.manual_seed(0)
    model = make_model(0.01)
    loader = DataLoader(data, batch_size=128, shuffle=True)
    counts: dict[str, int] = {"saves": 0}
    with tempfile.TemporaryDirectory() as folder:
        from hotloop.checkpoint.run import RunFolder

        write = RunFolder.write

        def counted(*args: Any) -> Any:
            counts["saves"] += 1
            return write(*args)

        RunFolder.write = counted  # type: ignore[method-assign, assignment]
        started = time.perf_counter()
        model.fit(
            loader, monitor="train_loss", epochs=epochs, quiet=True, exact=True,
            ckpt_path=Path(folder) / "best", save_every_steps=every,
        )  # fmt: skip
        seconds = time.perf_counter() - started
        RunFolder.write = write  # type: ignore[method-assign]
    return seconds, counts["saves"]


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=12_800)
    parser.add_argument("--every", type=int, default=5, help="steps between two saves")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    from hotloop import datasets

    split = datasets.fashion_mnist().train
    data = TensorDataset(*(part[: options.rows] for part in split.tensors()))
    train(data, None, 1)  # warm-up
    rows = []
    for _ in range(options.repeats):
        without, _ = train(data, None, 2)
        with_saves, saves = train(data, options.every, 2)
        rows.append({"without": without, "with": with_saves, "saves": saves})
        print(f"without {without:.2f} s, with {saves} saves {with_saves:.2f} s", flush=True)
    per_save = statistics.median((r["with"] - r["without"]) / r["saves"] for r in rows)
    result = {
        **describe_machine(),
        "job": f"convolutional net, {options.rows:,} rows of Fashion-MNIST as tensors, batch 128, "
        "read in this process",
        "rows": rows,
        "seconds_per_save": per_save,
        "share_at_one_save_a_minute": per_save / 60,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{result['date']}-saving.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(f"a save costs {per_save * 1e3:.1f} ms of training: {per_save / 60:.3%} at one a minute")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

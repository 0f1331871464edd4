"""Five folds of a tabular job in scikit-learn: ``python -m benchmarks.estimators``.

``cross_val_score`` of a 20-64-64-2 net for ten epochs, by hotloop's estimator, by skorch's with and
without the accuracy that it computes of each epoch, and by scikit-learn's own network. All hold out
a tenth for validation, and hotloop keeps the best weights besides. Each run is a process of its
own, in turn, with one thread, and does a small one first; imports are not in the time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import make_classification
from sklearn.model_selection import cross_val_score
from torch import nn

from benchmarks.machine import describe_machine

LR, BATCH_SIZE, EPOCHS, HELD_OUT = 1e-3, 128, 10, 0.1


def make_net() -> nn.Sequential:
    """Return the net that all of torch's train."""
    return nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)
    )


def hotloop(**options: Any) -> Any:
    from hotloop.estimators import NetClassifier

    return NetClassifier(
        make_net, lr=LR, epochs=EPOCHS, patience=EPOCHS, batch_size=BATCH_SIZE,
        validation_share=HELD_OUT, random_state=0, **options,
    )  # fmt: skip


def hotloop_exact() -> Any:
    return hotloop(fit__exact=True)


def skorch(**options: Any) -> Any:
    from skorch import NeuralNetClassifier  # type: ignore[import, unused-ignore]
    from skorch.dataset import ValidSplit  # type: ignore[import, unused-ignore]

    torch.manual_seed(0)
    return NeuralNetClassifier(
        make_net, criterion=nn.CrossEntropyLoss, optimizer=torch.optim.Adam, lr=LR,
        max_epochs=EPOCHS, batch_size=BATCH_SIZE, iterator_train__shuffle=True,
        train_split=ValidSplit(HELD_OUT, stratified=True, random_state=0), verbose=0, **options,
    )  # fmt: skip


def skorch_loss_only() -> Any:
    return skorch(callbacks__valid_acc=None)


def scikit_learn() -> Any:
    from sklearn.neural_network import MLPClassifier

    return MLPClassifier(
        (64, 64), learning_rate_init=LR, batch_size=BATCH_SIZE, max_iter=EPOCHS,
        early_stopping=True, validation_fraction=HELD_OUT, n_iter_no_change=EPOCHS, random_state=0,
    )  # fmt: skip


CONTESTANTS: dict[str, Callable[[], Any]] = {
    "hotloop": hotloop,
    "hotloop_exact": hotloop_exact,
    "skorch": skorch,
    "skorch_loss_only": skorch_loss_only,
    "scikit_learn": scikit_learn,
}


def measure(name: str, num_rows: int) -> dict[str, float]:
    """Run all folds once, in this process."""
    warnings.simplefilter("ignore")  # scikit-learn's, that ten epochs are few
    inputs, labels = make_classification(
        num_rows, 20, n_informative=10, n_clusters_per_class=4, class_sep=0.8, random_state=0
    )
    inputs = inputs.astype(np.float32)
    cross_val_score(CONTESTANTS[name](), inputs[:1000], labels[:1000], cv=2)  # warm-up
    started, used = time.perf_counter(), time.process_time()
    scores = cross_val_score(CONTESTANTS[name](), inputs, labels, cv=5, error_score="raise")
    return {
        "seconds": time.perf_counter() - started,
        "processor_seconds": time.process_time() - used,
        "accuracy": float(scores.mean()),
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--child", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(options.child, options.rows)))
        return
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    for _ in range(options.repeats):
        for name, found in runs.items():
            command = [sys.executable, "-m", "benchmarks.estimators"]
            command += ["--child", name, "--rows", str(options.rows)]
            one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=one_thread)
            found.append(json.loads(done.stdout))
            print(f"{name}: {found[-1]['seconds']:.2f} s", flush=True)
    rows = [_row(name, found, runs["skorch"]) for name, found in runs.items()]
    result = {
        **describe_machine(),
        "threads": 1,
        "job": f"cross_val_score, 5 folds of {options.rows:,} x 20, 20-64-64-2, {EPOCHS} epochs, "
        f"batch {BATCH_SIZE}, {HELD_OUT:.0%} held out",
        "rows": rows,
        "runs": runs,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{result['date']}-estimators.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    for row in rows:
        low, high = row["to_skorch_range"]
        print(
            f"{row['name']:<17} {row['seconds']:6.2f} s ({row['processor_seconds']:.2f} s of a "
            f"processor), {row['to_skorch']:.2f} of skorch's "
            f"({low:.2f} to {high:.2f}), accuracy {row['accuracy']:.4f}"
        )
    print(f"written to {path}")


def _row(name: str, found: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, Any]:
    ratios = [run["seconds"] / other["seconds"] for run, other in zip(found, base, strict=True)]
    return {
        "name": name,
        "seconds": statistics.median(run["seconds"] for run in found),
        "processor_seconds": statistics.median(run["processor_seconds"] for run in found),
        "to_skorch": statistics.median(ratios),
        "to_skorch_range": [min(ratios), max(ratios)],
        "accuracy": statistics.mean(run["accuracy"] for run in found),
    }


if __name__ == "__main__":
    main()

"""What is run: sizes, and what one process is told to do."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace

EXPERIMENTS = ("matmul", "linear-regression", "image")


@dataclass(frozen=True)
class Sizes:
    """How much of everything.

    Attributes:
        matmul_rows: rows of the left and columns of the right matrix.
        matmul_inner: what is summed over.
        matmul_calls: warm products of each form, at most.
        regression_rows: samples, all of them in each step.
        regression_blocks: of steps; the first one counts as warm-up.
        regression_block_steps: steps of Adam in a block.
        image_train: training images an epoch, repeated where the data has fewer; 0 for all.
        image_val: validation images, in the same way.
        image_epochs: passes over them; the first one counts as warm-up.
        rounds: how often each form of the two trainings is run, in turn.
        rate_seconds: time to measure each of a device's rates.
    """

    matmul_rows: int = 10_000
    matmul_inner: int = 200
    matmul_calls: int = 20
    regression_rows: int = 1_000_000
    regression_blocks: int = 10
    regression_block_steps: int = 50
    image_train: int = 0
    image_val: int = 0
    image_epochs: int = 3
    rounds: int = 3
    rate_seconds: float = 1.0

    @property
    def regression_steps(self) -> int:
        """All steps of the regression."""
        return self.regression_blocks * self.regression_block_steps


FULL = Sizes()
QUICK = Sizes(
    matmul_calls=4,
    image_train=2_560,
    image_val=512,
    rounds=1,
    rate_seconds=0.2,
)


def choose_sizes(quick: bool, images: int | None = None) -> Sizes:
    """Return the sizes of a run.

    Args:
        quick: small ones.
        images: training images an epoch in place of theirs; a sixth as many to validate on.
    """
    sizes = QUICK if quick else FULL
    if images is None:
        return sizes
    return replace(sizes, image_train=images, image_val=-(-images // 6))


@dataclass(frozen=True)
class Spec:
    """What one process measures.

    Attributes:
        experiment: one of ``EXPERIMENTS``, or "rates" for the device's own.
        form: which way of computing it; "" for all that share a process.
        device: as torch writes it.
        sizes: how much.
        seed: of all random numbers.
        image_data: "fashion-mnist" or "digits".
        data_folder: where the images lie; "" for the usual places.
    """

    experiment: str
    form: str
    device: str
    sizes: Sizes
    seed: int = 0
    image_data: str = "digits"
    data_folder: str = ""

    def to_json(self) -> str:
        """Return it as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Spec:
        """Return what ``to_json`` wrote."""
        fields = json.loads(line)
        return cls(**{**fields, "sizes": Sizes(**fields["sizes"])})

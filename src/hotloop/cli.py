"""The command line ``hotloop``.

Exit codes: 0 done, 1 it could not be done (the message says why), 2 the arguments are wrong,
75 stopped by a signal and resumable, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import datetime
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hotloop.commands.checkpoint import app as checkpoint_app
from hotloop.commands.devices import devices
from hotloop.commands.help import Commands, add_command
from hotloop.experiments.bench.command import bench

if TYPE_CHECKING:
    from hotloop.datasets import Splits

app = typer.Typer(
    name="hotloop",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train PyTorch models at the speed of a loop tuned by hand.",
    epilog="Start with: hotloop train --data digits --epochs 3 (needs no network).",
)


class Data(StrEnum):
    """The data sets that ``hotloop train`` knows."""

    FASHION_MNIST = "fashion-mnist"
    MNIST = "mnist"
    DIGITS = "digits"
    AUTO = "auto"


class MixedPrecision(StrEnum):
    """The values of ``--mixed-precision``."""

    NO = "no"
    BF16 = "bf16"
    FP16 = "fp16"


def _print_version(wanted: bool) -> None:
    if wanted:
        from hotloop import __version__

        typer.echo(f"hotloop {__version__}")
        raise typer.Exit


@app.callback()
def _explain(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Train PyTorch models at the speed of a loop tuned by hand."""
    del version


add_command(app)(devices)
add_command(app)(bench)


@add_command(app)
def train(
    data: Annotated[
        Data,
        typer.Option(
            help="What to learn: 60,000 clothes, 60,000 or 1,797 digits; auto takes the clothes "
            "where they can be had, else the 1,797 digits that ship with hotloop."
        ),
    ] = Data.FASHION_MNIST,
    epochs: Annotated[int, typer.Option(min=1, help="The most passes over the data.")] = 10,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples a step.")] = 128,
    lr: Annotated[float, typer.Option(min=0.0, help="Adam's learning rate.")] = 0.01,
    patience: Annotated[
        int, typer.Option(min=1, help="Stop after this many epochs without a better val_acc.")
    ] = 3,
    workers: Annotated[int, typer.Option(min=0, help="Loader processes.")] = 2,
    mixed_precision: Annotated[
        MixedPrecision, typer.Option(help="Compute in half precision where that is safe.")
    ] = MixedPrecision.NO,
    seed: Annotated[int, typer.Option(help="Of weights, order and dropout.")] = 42,
    cpu: Annotated[bool, typer.Option("--cpu", help="Stay on the CPU.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="Bitwise the numbers of a plain loop.")
    ] = False,
    data_folder: Annotated[
        Path | None, typer.Option(help="Where the data lies, or is to be put.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The run folder; runs/DATA-TIME when not given.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Save the run as it trains; go on with the one in --out."),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Begin anew where --out holds an earlier run.")
    ] = False,
) -> None:
    """Train a small convolutional net on real images, on the best device there is.

    Writes report.html, history.csv, curves.png and weights.pt (a state dict) to the run folder.
    Ctrl-C stops at the next step and keeps what there is. An earlier run's files are written over
    with --overwrite alone.

    Examples:
      hotloop train --data fashion-mnist --epochs 3

      hotloop train --data digits --epochs 20 --lr 0.003 --out runs/mine
    """
    from hotloop.experiments import image_classifier

    if resume and out is None:
        raise typer.BadParameter("--resume needs --out, the folder of the run to go on with")
    if resume and overwrite:
        raise typer.BadParameter("--resume goes on with a run, --overwrite begins anew: pass one")
    if out is not None and not overwrite:
        _refuse_to_overwrite(out, resume)
    name, splits = _load(data, data_folder)
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    run_folder = out or Path("runs") / f"{name}-{stamp}"
    if overwrite:
        image_classifier.set_aside(run_folder)
    typer.echo(f"{name}: {len(splits.train):,} training and {len(splits.val):,} validation images")
    history = image_classifier.train(
        splits,
        run_folder,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        patience=patience,
        num_workers=workers,
        seed=seed,
        mixed_precision=mixed_precision.value,
        cpu=cpu,
        exact=exact,
        resume=resume,
    )
    if not len(history):
        raise KeyboardInterrupt  # stopped before the first epoch was done: there is no result
    typer.echo(f"weights, history and report are in {run_folder}")


app.add_typer(checkpoint_app, name="checkpoint")


@add_command(app, context_settings={"allow_extra_args": True, "allow_interspersed_args": False})
def doctor(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(help="A Python script that calls fit.")],
    seconds: Annotated[float, typer.Option(min=1.0, help="For the trials, at most.")] = 60.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    with_callbacks: Annotated[
        bool, typer.Option(help="Call copies of fit's callbacks once, to time them.")
    ] = False,
) -> None:
    """Say where the time of a script's training goes, and what to do.

    Runs SCRIPT with the arguments behind its name up to its first call of fit, and makes short
    trials in place of that. Options of the doctor's own come before SCRIPT. What the script
    prints goes to stderr.

    Examples:
      hotloop doctor --seconds 30 train.py --data images

      hotloop doctor --json train.py > report.json
    """
    from hotloop.doctor.script import diagnose_script
    from hotloop.model import KerasModel

    found = diagnose_script(script, context.args, KerasModel, seconds, with_callbacks)
    if as_json:
        typer.echo(found.to_json())
    else:
        found.print()


def main() -> None:
    """Run the command line; a known error is one sentence and exit code 1."""
    from hotloop.errors import HotloopError, RunInterrupted

    try:
        app(standalone_mode=True)
    except RunInterrupted as stopped:
        typer.echo(f"hotloop: {stopped}", err=True)
        sys.exit(stopped.code)
    except HotloopError as error:
        typer.echo(f"hotloop: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        typer.echo("hotloop: stopped by Ctrl-C", err=True)
        sys.exit(130)


def _refuse_to_overwrite(folder: Path, resume: bool) -> None:
    """Refuse the folder of an earlier run, unless it is one to go on with."""
    from hotloop.experiments.image_classifier import FILES, SAVED_RUN
    from hotloop.experiments.run_folder import refuse_to_overwrite

    is_saved = (folder / SAVED_RUN).is_dir()
    if resume and is_saved:
        return
    go_on = "--resume to go on with it, " if is_saved else ""
    mend = f"pass {go_on}another folder, or --overwrite to begin anew"
    if resume:
        mend = "it was not saved to be gone on with; pass another folder, or --overwrite alone"
    refuse_to_overwrite(folder, (*FILES, SAVED_RUN), mend)


def _load(data: Data, folder: Path | None) -> tuple[str, Splits]:
    from hotloop.errors import DatasetUnavailableError
    from hotloop.experiments.image_classifier import load_data

    if data is not Data.AUTO:
        return data.value, load_data(data.value, folder)
    try:
        return Data.FASHION_MNIST.value, load_data(Data.FASHION_MNIST.value, folder)
    except DatasetUnavailableError as error:
        typer.echo(f"{error}\nTraining on the 1,797 digits that ship with hotloop instead.")
        return Data.DIGITS.value, load_data(Data.DIGITS.value)


if __name__ == "__main__":
    main()

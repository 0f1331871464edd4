"""``hotloop checkpoint``: look at run checkpoints and check them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hotloop.commands.help import add_command

app = typer.Typer(no_args_is_help=True, help="Look at the checkpoints of a run, and check them.")

_PathArgument = Annotated[
    Path,
    typer.Argument(help="A run folder (NAME.run), one of its step-*.json, or a file of weights."),
]


@add_command(app)
def inspect(
    path: _PathArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a run folder, a checkpoint or a file of weights holds."""
    found = _describe(path)
    if as_json:
        typer.echo(json.dumps(found, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for entry in found:
        table = Table(title=entry.pop("path"), show_header=False)
        for name, value in entry.items():
            table.add_row(name, str(value))
        console.print(table)


@add_command(app)
def verify(path: _PathArgument) -> None:
    """Check sizes, checksums and contents; exit code 1 when anything is damaged."""
    from hotloop.errors import CheckpointError

    num_bad = 0
    for target in _targets(path):
        try:
            _, has_sums = _read(target)
        except CheckpointError as error:
            num_bad += 1
            typer.echo(f"damaged: {error}")
        else:
            typer.echo(f"{'whole' if has_sums else 'readable, without checksums'}: {target}")
    if num_bad:
        raise typer.Exit(1)


def _targets(path: Path) -> list[Path]:
    from hotloop.checkpoint.run import RunFolder
    from hotloop.errors import CheckpointError
    from hotloop.fitting.resume.settings import run_folder_of

    if path.is_dir():
        manifests = RunFolder(path).manifests()
        if not manifests:
            raise CheckpointError(
                f"'{path}' holds no checkpoint (step-*.json): pass the folder beside ckpt_path "
                f"whose name ends in .run."
            )
        return manifests
    if not path.exists() and run_folder_of(path).is_dir():
        return _targets(run_folder_of(path))
    return [path]


def _read(path: Path) -> tuple[Any, bool]:
    """Return what a file holds, and whether it has checksums, which fit."""
    from hotloop.checkpoint.run import manifest
    from hotloop.checkpoint.weights import read_checked

    return (manifest.read(path), True) if path.suffix == ".json" else read_checked(path)


def _describe(path: Path) -> list[dict[str, Any]]:
    return [
        _describe_run(target) if target.suffix == ".json" else _describe_weights(target)
        for target in _targets(path)
    ]


def _describe_run(path: Path) -> dict[str, Any]:
    from hotloop.checkpoint.run import manifest

    found = manifest.read(path)
    about, stopping = found.state["run"], found.state["stopping"]
    tensors = found.state["training"]["net"]["tensors"]
    in_epoch = found.state["stage"] is not None
    return {
        "path": str(path),
        "saved": found.saved,
        "step": found.step,
        "epoch": about["epoch"],
        "batches of that epoch done": found.state["train_place"]["num_batches"] if in_epoch else 0,
        "epochs finished": stopping["epoch"],
        f"best {about['monitor']}": stopping["best"],
        "best epoch": stopping["best_epoch"],
        "tensors of the net": len(tensors),
        "numbers in the net": sum(tensor.numel() for tensor in tensors.values()),
        "device": about["device"],
        "torch": about["torch"],
    }


def _describe_weights(path: Path) -> dict[str, Any]:
    import torch

    state = {n: t for n, t in _read(path)[0].items() if isinstance(t, torch.Tensor)}
    return {
        "path": str(path),
        "tensors": len(state),
        "numbers": sum(tensor.numel() for tensor in state.values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in state.values()),
        "first": ", ".join(f"{n} {tuple(t.shape)}" for n, t in list(state.items())[:4]),
    }

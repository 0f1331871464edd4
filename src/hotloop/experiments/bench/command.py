"""The command ``hotloop bench``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from hotloop.experiments.bench.outcome import Outcome


_FILES = ("bench.json", "bench.csv", "bench.png", "report.html")


class Choice(StrEnum):
    """The experiments, or all of them."""

    MATMUL = "matmul"
    LINEAR_REGRESSION = "linear-regression"
    IMAGE = "image"
    ALL = "all"


def bench(
    experiment: Annotated[Choice, typer.Argument(help="What to run.")],
    devices: Annotated[
        str | None,
        typer.Option(help="With commas: cpu,cuda:0. Every device of this machine if not given."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Small sizes: about a minute.")] = False,
    images: Annotated[
        int | None,
        typer.Option(
            min=1_000,
            help="Training images an epoch, and a sixth as many to validate on, to bound the time; "
            "all 60,000 if not given, 2,560 with --quick.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the files; runs/bench-TIME if not given.")
    ] = None,
    data_folder: Annotated[
        Path | None, typer.Option(help="Where Fashion-MNIST lies, or is to be put.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Write over an earlier run's files in --out.")
    ] = False,
) -> None:
    """CPU against GPU: the same three experiments on every device, timed honestly.

    A matrix product (10,000 x 200 times 200 x 10,000), a linear regression on a million rows, and
    the image classifier, each as a textbook times or writes it, the two trainings also through
    KerasModel, and at the floor of its arithmetic. Writes report.html, bench.png, bench.csv and
    bench.json; after Ctrl-C of what was measured until then.

    Examples:
      hotloop bench all --quick

      hotloop bench image --devices cpu,cuda:0 --out runs/mine

      hotloop bench all --images 20000    (some minutes on a CPU with two cores)
    """
    import datetime

    from rich.console import Console

    from hotloop.experiments.bench.plan import EXPERIMENTS, choose_sizes
    from hotloop.experiments.bench.run import run_bench
    from hotloop.experiments.run_folder import made, refuse_to_overwrite

    console = Console()
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = out or Path("runs") / f"bench-{stamp}"
    if not overwrite:
        refuse_to_overwrite(folder, _FILES, "pass another folder, or --overwrite")
    with made(folder), _Bars(console) as display:  # known before anything is run
        outcome = run_bench(
            EXPERIMENTS if experiment is Choice.ALL else (experiment.value,),
            None if devices is None else [name.strip() for name in devices.split(",")],
            quick=quick,
            sizes=choose_sizes(quick, images),
            data_folder="" if data_folder is None else str(data_folder),
            display=display,
        )
    _write(outcome, folder, console)
    if outcome.stopped:
        raise typer.Exit(130)


def _write(outcome: Outcome, folder: Path, console: Console) -> None:
    from hotloop.experiments.bench.chart import draw_chart
    from hotloop.experiments.bench.files import write_csv, write_json
    from hotloop.experiments.bench.report import write_report
    from hotloop.experiments.bench.table import print_outcome

    write_json(outcome, folder / "bench.json")
    write_csv(outcome, folder / "bench.csv")
    draw_chart(outcome, folder / "bench.png")
    write_report(outcome, folder / "report.html")
    print_outcome(outcome, console)
    console.print(
        f"open {folder / 'report.html'}; beside it are bench.png, bench.csv and bench.json",
        soft_wrap=True,
        highlight=False,
    )


class _Bars:
    """Two bars: all processes, and the one that runs; lines in a log file."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeElapsedColumn as Elapsed

        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Elapsed(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._all = self._progress.add_task("all", total=None)
        self._one = self._progress.add_task("starting Python, importing torch", total=None)

    def __enter__(self) -> _Bars:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, num_jobs: int) -> None:
        self._progress.update(self._all, total=num_jobs)

    def job(self, text: str) -> None:
        self._progress.reset(self._one, description=text, total=None)
        if not self._console.is_terminal:
            self._console.print(text, highlight=False)

    def tell(self, event: dict[str, Any]) -> None:
        self._progress.update(self._one, completed=event["done"], total=event["of"])

    def job_done(self) -> None:
        self._progress.advance(self._all)

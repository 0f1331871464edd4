"""Run the notebooks of this folder, keep their outputs, and tell whether these are out of date.

python docs/build_notebooks.py              run each notebook and store outputs and stamp
python docs/build_notebooks.py NAME.ipynb   run this one only
python docs/build_notebooks.py --check      say what is out of date; exit with 1 if something is

A notebook's stamp is in its metadata: a hash of its code cells and the version of hotloop that its
outputs were made with. Outputs are out of date when either differs. Times differ from run to run;
cells with the tag "same" print what must not, on whatever machine, and a quick run (with
HOTLOOP_DOCS_QUICK=1 in the environment, which shrinks the sizes) has to print the same there. What
is measured, names a device or depends on rounding is printed in a cell without the tag.

A translation has the code of its original, so it is not run: it gets the original's outputs. Its
stamp has a hash of the text that was translated, so that a change of the original's text shows.
After bringing the translation up to date run the build again.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

import hotloop

DOCS = Path(__file__).parent
TRANSLATIONS: dict[str, tuple[str, ...]] = {
    "cpu_against_gpu.ipynb": ("cpu_against_gpu.zh.ipynb",),
    "devices_by_hand.ipynb": ("devices_by_hand.zh.ipynb",),
}
"""Each notebook, and its translations."""

_SAME = "same"
_TIMEOUT_SECONDS = 900
_QUICK = "HOTLOOP_DOCS_QUICK"


def read(path: Path) -> Any:
    """Return a notebook."""
    return nbformat.read(path, as_version=4)


def hash_cells(notebook: Any, kind: str) -> str:
    """Return a hash of the sources of all cells of a kind, "code" or "markdown"."""
    sources = [cell.source for cell in notebook.cells if cell.cell_type == kind]
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]


def execute(notebook: Any, folder: Path, *, quick: bool) -> Any:
    """Run a copy of a notebook in ``folder`` and return it with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
    """
    copy = nbformat.from_dict(notebook)  # type: ignore[no-untyped-call]
    environment = {**os.environ, _QUICK: "1" if quick else "0"}
    environment.pop("MPLBACKEND", None)  # the kernel's own, which puts pictures into the page
    client = NotebookClient(copy, timeout=_TIMEOUT_SECONDS, kernel_name="python3")
    client.execute(cwd=str(folder), env=environment)
    return copy


def printed(cell: Any) -> str:
    """Return what a code cell printed or returned, as text."""
    parts = [
        output.get("text", output.get("data", {}).get("text/plain", ""))
        for output in cell.outputs
        if output.output_type in ("stream", "execute_result")
    ]
    return "".join(parts).strip()


def same_outputs(notebook: Any) -> list[str]:
    """Return what the cells with the tag "same" printed."""
    return [
        printed(cell)
        for cell in notebook.cells
        if cell.cell_type == "code" and _SAME in cell.metadata.get("tags", [])
    ]


def find_stale(name: str, folder: Path = DOCS) -> list[str]:
    """Return what is out of date in a notebook and its translations, one sentence each."""
    original = read(folder / name)
    code = hash_cells(original, "code")
    problems = _find_stale_outputs(name, original, code)
    for translation in TRANSLATIONS.get(name, ()):
        translated = read(folder / translation)
        problems += _find_stale_outputs(translation, translated, code)
        if hash_cells(translated, "code") != code:
            problems.append(f"{translation}: its code differs from that of {name}.")
        stamp = translated.metadata.get("hotloop", {})
        if stamp.get("translated") != hash_cells(original, "markdown"):
            problems.append(f"{translation}: the text of {name} changed since it was translated.")
    return problems


def build(name: str, folder: Path = DOCS) -> None:
    """Run a notebook, store its outputs, and pass them on to its translations."""
    original = read(folder / name)
    with tempfile.TemporaryDirectory() as where:  # files that it writes are no part of the docs
        executed = execute(original, Path(where), quick=False)
    stamp = {"code": hash_cells(original, "code"), "version": hotloop.__version__}
    executed.metadata["hotloop"] = stamp
    for cell in executed.cells:
        cell.metadata.pop("execution", None)  # times of day, which would change in every build
    nbformat.write(executed, folder / name)
    for translation in TRANSLATIONS.get(name, ()):
        translated = read(folder / translation)
        cells = [cell for cell in executed.cells if cell.cell_type == "code"]
        own = [cell for cell in translated.cells if cell.cell_type == "code"]
        if [cell.source for cell in own] != [cell.source for cell in cells]:
            raise SystemExit(f"{translation}: its code differs from that of {name}; copy it there.")
        for cell, source in zip(own, cells, strict=True):
            cell.outputs, cell.execution_count = source.outputs, source.execution_count
        translated.metadata["hotloop"] = {
            **stamp,
            "translated": hash_cells(original, "markdown"),
        }
        nbformat.write(translated, folder / translation)


def _find_stale_outputs(name: str, notebook: Any, code: str) -> list[str]:
    stamp = notebook.metadata.get("hotloop", {})
    problems = []
    if stamp.get("code") != code:
        problems.append(f"{name}: its code changed since its outputs were made.")
    if stamp.get("version") != hotloop.__version__:
        problems.append(
            f"{name}: its outputs are of hotloop {stamp.get('version')}, this is "
            f"{hotloop.__version__}."
        )
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    if any(cell.execution_count is None for cell in cells):
        problems.append(f"{name}: a cell has not been run.")
    return problems


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(TRANSLATIONS)}; all if not given"
    )
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    options = parser.parse_args()
    if unknown := [name for name in options.names if name not in TRANSLATIONS]:
        parser.error(f"{unknown[0]} is not one of {', '.join(TRANSLATIONS)}")
    names = options.names or list(TRANSLATIONS)
    for name in names:
        if not options.check:
            build(name)
    problems = [problem for name in names for problem in find_stale(name)]
    for problem in problems:
        sys.stderr.write(f"{problem}\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()

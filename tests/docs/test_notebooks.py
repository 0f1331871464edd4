"""The notebooks run, and the outputs that are stored in them are of their present code."""

from __future__ import annotations

import copy
import importlib.util
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[2]
specification = importlib.util.spec_from_file_location(
    "build_notebooks", ROOT / "docs" / "build_notebooks.py"
)
build_notebooks = importlib.util.module_from_spec(specification)
specification.loader.exec_module(build_notebooks)

NAMES = list(build_notebooks.TRANSLATIONS)


def words_of(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells)


def count_pictures(notebook) -> int:
    outputs = [o for cell in notebook.cells if cell.cell_type == "code" for o in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("name", NAMES)
def test_stored_outputs_are_of_this_code_and_version(name):
    assert build_notebooks.find_stale(name) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_quick_run_ends_well_and_prints_what_must_be_the_same(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # threads wait for each other on a busy machine
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    stored = build_notebooks.read(build_notebooks.DOCS / name)
    executed = build_notebooks.execute(stored, tmp_path, quick=True)
    expected = build_notebooks.same_outputs(stored)
    assert len(expected) >= 3
    assert build_notebooks.same_outputs(executed) == expected
    assert count_pictures(executed) == count_pictures(stored)


def test_no_figure_of_an_accelerator_where_none_took_part():
    """Cells that need one say so: their outputs were made on a CPU."""
    name = "cpu_against_gpu.ipynb"
    notebook = build_notebooks.read(build_notebooks.DOCS / name)
    told = [
        build_notebooks.printed(cell)
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.source.startswith('if accelerator.type == "cpu"')
    ]
    assert len(told) == 3
    machine = build_notebooks.printed(
        next(cell for cell in notebook.cells if cell.cell_type == "code")
    )
    if "cuda" not in machine:
        assert all("No accelerator here" in text for text in told)


def copy_notebooks(folder: Path, name: str) -> list[Path]:
    names = [name, *build_notebooks.TRANSLATIONS[name]]
    return [Path(shutil.copy(build_notebooks.DOCS / n, folder / n)) for n in names]


def edit(path: Path, kind: str, text: str) -> None:
    notebook = build_notebooks.read(path)
    next(cell for cell in notebook.cells if cell.cell_type == kind).source += text
    nbformat.write(notebook, path)


def test_each_kind_of_change_is_found(tmp_path, monkeypatch):
    name = "cpu_against_gpu.ipynb"
    original, translation = copy_notebooks(tmp_path, name)
    edit(original, "code", "\nprint(1)")
    problems = build_notebooks.find_stale(name, tmp_path)
    assert any("its code changed" in problem for problem in problems)
    assert any("its code differs" in problem for problem in problems)

    original, translation = copy_notebooks(tmp_path, name)
    edit(original, "markdown", " More text.")
    (problem,) = build_notebooks.find_stale(name, tmp_path)
    assert problem.startswith(translation.name)
    assert "changed since it was translated" in problem

    original, translation = copy_notebooks(tmp_path, name)
    edit(translation, "markdown", " Better words.")
    assert build_notebooks.find_stale(name, tmp_path) == []

    monkeypatch.setattr(build_notebooks.hotloop, "__version__", "99.0")
    assert len(build_notebooks.find_stale(name, tmp_path)) == 2


def test_a_build_stamps_both_and_a_failing_cell_is_an_error(tmp_path, monkeypatch):
    cells = [nbformat.v4.new_markdown_cell("Words"), nbformat.v4.new_code_cell("print(1 + 1)")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(notebook, tmp_path / "page.ipynb")
    translated = copy.deepcopy(notebook)
    translated.cells[0].source = "Worte"
    nbformat.write(translated, tmp_path / "page.de.ipynb")
    monkeypatch.setattr(build_notebooks, "TRANSLATIONS", {"page.ipynb": ("page.de.ipynb",)})
    assert len(build_notebooks.find_stale("page.ipynb", tmp_path)) == 7
    build_notebooks.build("page.ipynb", tmp_path)
    assert build_notebooks.find_stale("page.ipynb", tmp_path) == []
    both = [build_notebooks.read(tmp_path / n) for n in ("page.ipynb", "page.de.ipynb")]
    assert [build_notebooks.printed(one.cells[1]) for one in both] == ["2", "2"]
    assert "Worte" in words_of(both[1])

    notebook.cells[1].source = "raise ValueError('no')"
    with pytest.raises(CellExecutionError, match="no"):
        build_notebooks.execute(notebook, tmp_path, quick=True)

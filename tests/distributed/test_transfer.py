"""Objects written for another process, and read there."""

from __future__ import annotations

import linecache
import os
import subprocess
import sys
from pathlib import Path

import hotloop
from hotloop.distributed.transfer import write_objects

CELL = """class Loss:
    def __call__(self):
        return [self.fail(row) for row in [3]]

    def fail(self, row):
        raise LookupError(f"no row {row}")  # of a cell
"""
READ = """
import sys, traceback
from pathlib import Path
from hotloop.distributed.transfer import read_objects

for call in read_objects(Path(sys.argv[1])).values():
    try:
        call()
    except LookupError:
        traceback.print_exc()
"""


def test_a_traceback_leads_to_the_line_of_a_script_and_of_a_notebooks_cell(tmp_path):
    cell, script = str(tmp_path / "ipykernel" / "1.py"), tmp_path / "script.py"
    script.write_text(CELL.replace("a cell", "a script"))
    linecache.cache[cell] = (len(CELL), None, CELL.splitlines(keepends=True), cell)
    try:
        losses = {}
        for name, text in ((cell, CELL), (str(script), script.read_text())):
            there = {"__name__": "__main__"}  # a class that cannot be imported
            exec(compile(text, name, "exec"), there)
            losses[name] = there["Loss"]()
        write_objects(losses, tmp_path / "objects")
    finally:
        del linecache.cache[cell]
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "objects")],
        env=os.environ | {"PYTHONPATH": str(Path(hotloop.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, place in ((cell, "cell"), (str(script), "script")):
        assert f'File "{name}", line 3, in __call__' in done.stderr
        assert f'File "{name}", line 6, in fail\n    raise LookupError(f"no row' in done.stderr
        assert f"# of a {place}" in done.stderr

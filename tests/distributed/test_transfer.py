"""Objects written for another process, and read there."""

from __future__ import annotations

import linecache
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import hotloop
from hotloop.distributed.transfer import read_objects, write_objects
from hotloop.errors import TransferError

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


class Keeps(torch.optim.SGD):
    """An optimizer with an attribute of its own, which Optimizer leaves out when pickled."""

    def __init__(self, parameters):
        super().__init__(parameters, lr=0.1)
        self.kept, self.decay = 3, lambda step: 0.5**step


def test_an_optimizer_keeps_its_attributes_and_hooks(tmp_path):
    net, calls = torch.nn.Linear(2, 1), []
    optimizer = Keeps(net.parameters())
    optimizer.register_step_pre_hook(lambda *_: calls.append("hook"))
    torch.optim.lr_scheduler.StepLR(optimizer, 1)  # wraps ``step``, which cannot be copied
    write_objects({"net": net, "optimizer": optimizer, "calls": calls}, tmp_path / "objects")
    copy = read_objects(tmp_path / "objects")
    assert copy["optimizer"].kept == 3
    assert copy["optimizer"].decay(1) == 0.5
    assert copy["optimizer"].param_groups[0]["params"][0] is copy["net"].weight
    copy["optimizer"].step()
    assert copy["calls"] == ["hook"]


def test_a_parametrized_net_is_copied_with_its_parametrizations(tmp_path):
    net = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(2, 1))
    net.of_ones_own = [net.parametrizations.weight.original0]
    write_objects({"net": net}, tmp_path / "objects")
    copy = read_objects(tmp_path / "objects")["net"]
    assert isinstance(copy, torch.nn.Linear)
    assert torch.equal(copy.weight, net.weight)
    assert copy.of_ones_own[0] is copy.parametrizations.weight.original0
    with torch.no_grad():
        copy.parametrizations.weight.original0.mul_(2)
    assert torch.equal(copy.weight, 2 * net.weight)


def test_a_loader_is_copied_without_its_running_workers(tmp_path):
    data = torch.utils.data.TensorDataset(torch.arange(4))
    loader = torch.utils.data.DataLoader(data, 2, num_workers=1, persistent_workers=True)
    next(iter(loader))
    write_objects({"loader": loader}, tmp_path / "objects")
    copy = read_objects(tmp_path / "objects")["loader"]
    assert (copy.persistent_workers, copy._iterator) == (True, None)
    assert loader._iterator is not None


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a full device is Linux'")
def test_a_full_disk_is_no_fault_of_the_objects(tmp_path):
    (tmp_path / "objects").symlink_to("/dev/full")
    with pytest.raises(TransferError, match=r"full or not writable: set .* TMPDIR"):
        write_objects({"data": torch.zeros(1_000_000)}, tmp_path / "objects")

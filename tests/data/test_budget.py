"""The memory that resident data may take, under the limits of control groups."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from hotloop.data.budget import cgroup_available, resident_budget

NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}


def make_group(path: Path, version: int, limit: str, used: int, cached: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    limit_name, used_name, cached_name = NAMES[version]
    (path / limit_name).write_text(f"{limit}\n")
    (path / used_name).write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"cache 7\n{cached_name} {cached}\n")


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_group_above_the_process_counts(tmp_path: Path, version: int):
    root = tmp_path / "memory" if version == 1 else tmp_path
    own = tmp_path / "own"
    own.write_text("4:cpu:/other\n" + ("3:memory:/job/step\n" if version == 1 else "0::/job/step"))
    assert cgroup_available(tmp_path, own) == 1 << 62  # no such file system here
    make_group(root, version, "max" if version == 2 else str(1 << 63), 5000)
    make_group(root / "job", version, "4000", 3000, cached=500)
    make_group(root / "job" / "step", version, "9000", 3000)
    make_group(root / "job" / "another", version, "10", 10)
    assert cgroup_available(tmp_path, own) == 1500
    make_group(root / "job" / "step", version, "900", 3000)
    assert cgroup_available(tmp_path, own) == 0


CHILD = """
import os, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
import torch
from torch import nn
from torch.utils.data import DataLoader
from hotloop import KerasModel
from hotloop.data.budget import free_bytes
print(free_bytes(torch.device("cpu")))
data = [(torch.randn(250_000), 0) for _ in range(40)]  # 40 MB
model = KerasModel(nn.Linear(250_000, 2), nn.CrossEntropyLoss())
model.fit(DataLoader(data, 20), epochs=3, plot=False, resident_budget=0.05)
"""


def test_a_real_limit_keeps_data_off_the_memory(tmp_path: Path):
    group = Path("/sys/fs/cgroup/memory" if Path("/sys/fs/cgroup/memory").is_dir() else
                 "/sys/fs/cgroup") / f"hotloop-test-{os.getpid()}"  # fmt: skip
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        limit = next((group / name for name, *_ in NAMES.values() if (group / name).exists()), None)
        if limit is None:
            pytest.skip("control groups have no memory limit here")
        limit.write_text(str(700 << 20))
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(group)], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")}, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert 100 << 20 < int(done.stdout.split()[0]) < 700 << 20
        assert "stays on its loader" in done.stdout
    finally:
        group.rmdir()


def test_of_mps_counts_what_metal_recommends(monkeypatch: pytest.MonkeyPatch):
    metal = SimpleNamespace(
        recommended_max_memory=lambda: 12 << 30, driver_allocated_memory=lambda: 2 << 30
    )
    monkeypatch.setattr(torch, "get_device_module", lambda device: metal)
    assert resident_budget(torch.device("mps"), 0.5) == 5 << 30

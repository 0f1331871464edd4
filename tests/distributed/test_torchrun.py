"""Two processes that torchrun started: fit joins them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hotloop

SCRIPT = Path(__file__).with_name("torchrun_job.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("torchrun")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command.append("--local-addr=127.0.0.1")  # the machine's own name may be known to nobody
    environment = os.environ | {
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(Path(hotloop.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, str(SCRIPT), "found.json"],
        cwd=folder,
        env=environment,
        timeout=600,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "found.json").read_text())


def test_values_are_added_gathered_and_saved_over_processes(found):
    assert found["meeting"] == "both agree"


CASES = ["plain", "accumulated", "own_runner", "loss_with_weights", "own_runner_and_loss"]


@pytest.mark.parametrize("case", [*CASES, "by_method", "unfrozen"])
def test_the_numbers_of_one_process(found, case):
    assert found[case]["weights"] < 1e-6
    assert found[case]["history"] < 1e-6
    assert not found[case]["differs"]


def test_random_numbers_differ_and_decisions_do_not(found):
    expected = {"masks": True, "buffers": False, "weights": False, "epochs": False, "names": True}
    assert found["random"] == expected


def test_the_scripts_own_distributed_sampler(found):
    assert found["own_sampler"] == [2, False]


def test_a_parameter_without_gradient_is_named(found):
    assert found["unused"].startswith("idle.weight, idle.bias got no gradient")


def test_a_bar_that_one_process_draws_waits_for_no_other(found):
    assert found["bar"] == "its own"


def test_a_value_that_only_some_steps_return_is_averaged_over_those(found):
    assert found["adds"] == [3.0, 3.0]


def test_weights_that_differ_between_processes_are_named(found):
    assert found["spoiled"].startswith("0.weight differ between the processes after epoch 2")


def test_a_saved_run_goes_on(found):
    assert found["resumed"]


def test_a_checkpoint_that_a_process_does_not_see_is_refused(found):
    reason = "process 1 does not see the checkpoint of step 14 in 'stopped.pt.run', which process 0"
    assert found["unseen"].startswith(reason)


def test_processes_that_train_each_by_itself_do_not_save_one_run(found):
    assert "this is one of 2 processes that train each by itself" in found["separate"]

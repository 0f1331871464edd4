"""Kills trainings, goes on with them, and compares the end with the undisturbed run.

PYTHONPATH=../src:. OMP_NUM_THREADS=1 python -m faults.campaign --kills 240   (in tests/)

Each run is a child of this process, killed with SIGKILL at a random moment, inside a save, in one
of its loader workers, or stopped with SIGTERM; then it is run again, maybe killed again, until it
ends. Its weights, optimizer, random state and history must be bitwise those of the run that nobody
disturbed. The result goes to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from faults.child import INTERRUPTED, WORKER_DIED, start_child
from faults.jobs import JOBS, run

ROOT = Path(__file__).parents[2]
RANDOM, IN_SAVE, WORKER, TERM = (
    "kill -9 at a random moment",
    "kill -9 in a save",
    "kill -9 of a loader worker",
    "SIGTERM",
)
TOO_LATE = "none: the run was over before"
# how a process that was hit may end; SIGTERM ends one that has not begun to train at once
_ENDS = {
    RANDOM: {-signal.SIGKILL},
    IN_SAVE: {-signal.SIGKILL},
    WORKER: {WORKER_DIED},
    TERM: {INTERRUPTED, -signal.SIGTERM},
}
_PATIENCE_SECONDS = 120.0


class DisturbedRunError(Exception):
    """A run that did not end as it should."""


class Child:
    """One process that trains."""

    def __init__(self, job: str, folder: Path, die_in_save: int = 0) -> None:
        self.started = time.perf_counter()
        self.pid = start_child(_train, folder, job, die_in_save)

    def wait(self, seconds: float) -> int | None:
        """Return how it ended (the signal as a negative number), None while it runs."""
        until = time.perf_counter() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.perf_counter() >= until:
                return None
            time.sleep(0.001)

    def workers(self) -> list[int]:
        """Return its loader workers."""
        try:
            text = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text()
        except OSError:
            return []
        return [int(pid) for pid in text.split()]

    def hit(self, kind: str, rng: random.Random) -> str:
        """Disturb it; return what was done, which is another kind where there is no worker."""
        workers = self.workers() if kind == WORKER else []
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
            return WORKER
        os.kill(self.pid, signal.SIGTERM if kind == TERM else signal.SIGKILL)
        return TERM if kind == TERM else RANDOM


def _train(folder: Path, job: str, die_in_save: int) -> dict[str, Any]:
    if die_in_save:
        _die_at_call(die_in_save)
    return run(job, folder, callbacks=[AfterTraining()])


class AfterTraining:
    """Lets workers that live on be killed once the training is over, which is no fault of a run."""

    def on_fit_end(self, model: Any) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _die_at_call(number: int) -> None:
    """Let this process be killed at its n-th call that a save consists of."""
    calls = {"count": 0}

    def dying(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls["count"] += 1
            if calls["count"] == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("fsync", "replace", "unlink", "rename", "chmod"):
        setattr(os, name, dying(getattr(os, name)))


def disturb(
    job: str, kind: str, folder: Path, seconds: float, rng: random.Random
) -> tuple[Counter[str], int]:
    """Disturb a run until it ends by itself.

    Returns:
        What was done to it, and how many processes it took.
    """
    done: Counter[str] = Counter()
    num_hits = rng.choice((1, 1, 1, 2, 3))
    for number in range(num_hits + 1):
        in_save = rng.randint(1, 60) if number < num_hits and kind == IN_SAVE else 0
        child = Child(job, folder, in_save)
        hit = IN_SAVE if in_save else None
        status = None
        if number < num_hits and not in_save:
            status = child.wait(rng.uniform(0, seconds))
            hit = child.hit(kind, rng) if status is None else None
        if status is None:
            status = child.wait(_PATIENCE_SECONDS)
        if status is None:
            os.kill(child.pid, signal.SIGKILL)
            child.wait(_PATIENCE_SECONDS)
            raise DisturbedRunError(f"hung after '{hit}'")
        if number < num_hits:
            done[TOO_LATE if hit is None or status == 0 else hit] += 1
        if status == 0:
            return done, number + 1
        if hit is None or status not in _ENDS[hit]:
            raise DisturbedRunError(f"ended with {status} after '{hit}'")
    raise DisturbedRunError("did not end")


def train_undisturbed(job: str, folder: Path) -> tuple[dict[str, Any], float]:
    """Train a job twice without a fault; return what it came to, and the shorter time in seconds.

    Raises:
        SystemExit: it failed, or was not the same twice.
    """
    outcomes, seconds = [], []
    for number in range(2):
        where = folder / f"{job}-{number}"
        where.mkdir(parents=True)
        child = Child(job, where)
        if child.wait(_PATIENCE_SECONDS) != 0:
            raise SystemExit(f"{job}: the undisturbed run failed: {_log(where)}")
        seconds.append(time.perf_counter() - child.started)
        outcomes.append(json.loads((where / "result.json").read_text()))
    if outcomes[0] != outcomes[1]:
        raise SystemExit(f"{job}: two undisturbed runs differ, and nothing can be compared")
    return outcomes[0], min(seconds)


def scheduled(number: int, jobs: list[str]) -> tuple[str, str]:
    """Return job and kind of fault of a run; each job meets each kind that it can in turn."""
    turn, place = divmod(number, len(jobs))
    kinds = [kind for kind in _ENDS if kind != WORKER or "workers" in jobs[place]]
    return jobs[place], kinds[(turn + place) % len(kinds)]


def campaign(num_kills: int, jobs: list[str], seed: int, folder: Path) -> dict[str, Any]:
    """Disturb runs of each job in turn until there were so many kills; return what came of it."""
    rng = random.Random(seed)
    references, lengths = {}, {}
    for job in jobs:
        references[job], lengths[job] = train_undisturbed(job, folder / "reference")
    per_job: dict[str, dict[str, Any]] = {
        job: {"runs": 0, "bitwise_equal": 0, "resumes": 0, "disturbed_by": Counter()}
        for job in jobs
    }
    different = []
    number = num_done = 0
    while number < len(jobs) or num_done < num_kills:
        job, kind = scheduled(number, jobs)
        where = folder / f"{number:04d}-{job}"
        where.mkdir()
        number += 1
        entry = per_job[job]
        entry["runs"] += 1
        try:
            done, num_processes = disturb(job, kind, where, 0.95 * lengths[job], rng)
        except DisturbedRunError as error:
            different.append({"job": job, "kind": kind, "why": str(error), "log": _log(where)})
            if len(different) > 9:
                break
            continue
        entry["disturbed_by"] += done
        num_done += _num_kills(done)
        entry["resumes"] += num_processes - 1
        if json.loads((where / "result.json").read_text()) == references[job]:
            entry["bitwise_equal"] += 1
        else:
            different.append({"job": job, "kind": kind, "why": "other bits", "log": _log(where)})
        if number % len(jobs) == 0:
            text = f"{number} runs, {num_done} kills, {len(different)} different"
            print(text, file=sys.stderr, flush=True)
    total: Counter[str] = sum((entry["disturbed_by"] for entry in per_job.values()), Counter())
    return {
        "runs": number,
        "bitwise_equal": sum(entry["bitwise_equal"] for entry in per_job.values()),
        "kills": num_done,
        "resumes": sum(entry["resumes"] for entry in per_job.values()),
        "disturbed_by": total,
        "different": different,
        "jobs": per_job,
        "seed": seed,
    }


def _num_kills(done: Counter[str]) -> int:
    return sum(count for kind, count in done.items() if kind in (RANDOM, IN_SAVE, WORKER))


def _log(folder: Path) -> str:
    log = folder / "log.txt"
    return log.read_text()[-2000:] if log.exists() else ""


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=240, help="kill -9 to reach")
    parser.add_argument("--jobs", help="with commas; all of them when not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="a folder for the result"
    )
    parser.add_argument("--keep", type=Path, help="a new folder for the runs' files")
    options = parser.parse_args()
    sys.path.append(str(ROOT))
    from benchmarks.machine import describe_machine

    machine = describe_machine()  # before the runs: the commit may move on meanwhile
    torch.set_num_threads(1)  # no thread pool in this process: its children are forks of it
    with tempfile.TemporaryDirectory() as folder:
        run("resident", Path(folder))  # so that children need import nothing more
    jobs = options.jobs.split(",") if options.jobs else list(JOBS)
    started = time.perf_counter()
    if options.keep:
        result = campaign(options.kills, jobs, options.seed, options.keep)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = campaign(options.kills, jobs, options.seed, Path(folder))
    command = f"python -m faults.campaign --kills {options.kills} --seed {options.seed}"
    seconds = round(time.perf_counter() - started, 1)
    text = json.dumps({**machine, "command": command, "seconds": seconds, **result}, indent=1)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{machine['date']}-faults.json").write_text(text + "\n")
    print(text)
    raise SystemExit(1 if result["different"] else 0)


if __name__ == "__main__":
    main()

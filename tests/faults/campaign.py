"""Kills trainings, goes on with them, and compares the end with the undisturbed run.

python -m faults.campaign --kills 200 --out ../benchmarks/results/faults.json   (in tests/)

Each run is a child of this process, killed with SIGKILL at a random moment, inside a save, in one
of its loader workers, or stopped with SIGTERM; then it is run again, maybe killed again, until it
ends. Its weights, optimizer, random state and history must be bitwise those of the run that nobody
disturbed.
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

KINDS = ("random", "in a save", "a loader worker", "SIGTERM")
_PATIENCE_SECONDS = 120.0


class Child:
    """One process that trains, made by ``fork`` so that nothing is imported again."""

    def __init__(self, job: str, folder: Path, die_in_save: int = 0) -> None:
        self.result = folder / "result.json"
        self.result.unlink(missing_ok=True)
        self.started = time.perf_counter()
        self.pid = os.fork()
        if not self.pid:
            _be_child(job, folder, self.result, die_in_save)

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


def _be_child(job: str, folder: Path, result: Path, die_in_save: int) -> None:
    status = 1
    try:
        with (folder / "log.txt").open("a") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        if die_in_save:
            _die_at_call(die_in_save)
        from faults.jobs import run

        outcome = run(job, folder)
        result.write_text(json.dumps(outcome))
        status = 0
    except SystemExit as stopped:
        status = stopped.code if isinstance(stopped.code, int) else 1
    except BaseException:  # noqa: BLE001 - it ends this process, and the log says how
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


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


def disturb(job: str, kind: str, folder: Path, seconds: float, rng: random.Random) -> Counter[str]:
    """Disturb a run until it ends by itself; count how its processes ended."""
    ends: Counter[str] = Counter()
    num_kills = rng.choice((1, 1, 1, 2, 3))
    while True:
        disturbed = num_kills > 0
        num_kills -= 1
        in_save = rng.randint(1, 60) if disturbed and kind == "in a save" else 0
        child = Child(job, folder, in_save)
        status = None
        if disturbed and not in_save:
            status = child.wait(rng.uniform(0, seconds))
            if status is None:
                _hit(child, kind, rng)
        if status is None:
            status = child.wait(_PATIENCE_SECONDS)
        if status is None:
            os.kill(child.pid, signal.SIGKILL)
            raise SystemExit(f"{job}: hung after '{kind}'; see {folder / 'log.txt'}")
        ends[str(status)] += 1
        if status == 0:
            return ends
        if not disturbed and status not in (-signal.SIGKILL, 75):
            raise SystemExit(f"{job}: ended with {status}; see {folder / 'log.txt'}")


def _hit(child: Child, kind: str, rng: random.Random) -> None:
    workers = child.workers() if kind == "a loader worker" else []
    if kind == "SIGTERM":
        os.kill(child.pid, signal.SIGTERM)
    elif workers:
        os.kill(rng.choice(workers), signal.SIGKILL)
    else:
        os.kill(child.pid, signal.SIGKILL)


def campaign(kills: int, jobs: list[str], seed: int, folder: Path) -> dict[str, Any]:
    """Disturb runs of each job in turn; return counts and what differed."""
    rng = random.Random(seed)
    references, lengths = {}, {}
    for job in jobs:
        where = folder / "reference" / job
        where.mkdir(parents=True)
        child = Child(job, where)
        if child.wait(_PATIENCE_SECONDS) != 0:
            raise SystemExit(f"{job}: the undisturbed run failed; see {where / 'log.txt'}")
        lengths[job] = time.perf_counter() - child.started
        references[job] = json.loads(child.result.read_text())
    ends: Counter[str] = Counter()
    per_job: Counter[str] = Counter()
    per_kind: Counter[str] = Counter()
    different = []
    for number in range(kills):
        job = jobs[number % len(jobs)]
        kinds = KINDS if "workers" in job else tuple(k for k in KINDS if "worker" not in k)
        kind = kinds[(number // len(jobs)) % len(kinds)]
        where = folder / f"{number:04d}-{job}"
        where.mkdir()
        ends += disturb(job, kind, where, 1.1 * lengths[job], rng)
        found = json.loads((where / "result.json").read_text())
        per_job[job] += 1
        per_kind[kind] += 1
        if found != references[job]:
            different.append({"job": job, "kind": kind, "folder": str(where)})
    return {
        "runs": kills,
        "equal": kills - len(different),
        "different": different,
        "processes_ended_with": dict(sorted(ends.items())),
        "runs_by_job": dict(per_job),
        "runs_by_kind": dict(per_kind),
        "seed": seed,
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="runs that are disturbed")
    parser.add_argument("--jobs", help="with commas; all of them when not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    parser.add_argument("--keep", type=Path, help="a new folder for the runs' files")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)  # no thread pool in this process: its children are forks of it
    from faults.jobs import JOBS, run

    with tempfile.TemporaryDirectory() as folder:
        run("resident", Path(folder))  # so that children need import nothing more
    jobs = options.jobs.split(",") if options.jobs else list(JOBS)
    started = time.perf_counter()
    if options.keep:
        result = campaign(options.kills, jobs, options.seed, options.keep)
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = campaign(options.kills, jobs, options.seed, Path(folder))
    result["seconds"] = round(time.perf_counter() - started, 1)
    result["torch"] = torch.__version__
    text = json.dumps(result, indent=1)
    if options.out:
        options.out.write_text(text + "\n")
    print(text)
    raise SystemExit(1 if result["different"] else 0)


if __name__ == "__main__":
    main()

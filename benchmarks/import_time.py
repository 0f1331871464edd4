"""How long ``import hotloop`` takes beside ``import torch``: ``python -m benchmarks.import_time``.

Fresh processes in turn; the time is that of the import statement alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import describe_machine

TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def measure(module: str) -> float:
    """Return the seconds that one fresh process takes to import ``module``."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED.format(module)], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    for module in ("torch", "hotloop"):
        measure(module)  # brings the files into the page cache
    pairs = [(measure("torch"), measure("hotloop")) for _ in range(options.repeats)]
    ratio = statistics.median(hotloop / torch for torch, hotloop in pairs)
    result = {
        **describe_machine(),
        "torch_seconds": [torch for torch, _ in pairs],
        "hotloop_seconds": [hotloop for _, hotloop in pairs],
        "median_ratio": ratio,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{result['date']}-import-time.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    torch_median, hotloop_median = (
        statistics.median(pair[position] for pair in pairs) for position in (0, 1)
    )
    print(f"import torch   {torch_median:.3f} s (median of {len(pairs)})")
    print(f"import hotloop {hotloop_median:.3f} s, {ratio:.3f} times import torch, pair by pair")
    print(f"written to {path}")


if __name__ == "__main__":
    main()

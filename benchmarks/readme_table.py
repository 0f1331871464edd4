"""Write the README's table from the newest results: ``python -m benchmarks.readme_table``."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.jobs import JOBS

HERE = Path(__file__).parent
START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"


def make_table() -> str:
    """Return the newest result of each job as Markdown."""
    parts = []
    for job in JOBS:
        found = sorted((HERE / "results").glob(f"*-{job}-*.json"))
        if not found:
            continue
        result = json.loads(found[-1].read_text())
        machine, settings = result["machine"], result["settings"]
        parts.append(
            f"`{job}`, {machine['date']}, {machine['devices'][0]}, {machine['threads']} threads, "
            f"torch {machine['versions']['torch']}, median of {settings['repeats']}:\n"
        )
        parts.append("| | s an epoch | to the hand-written loop | val_acc | peak MiB |")
        parts.append("|---|---|---|---|---|")
        parts += [
            f"| {row['contestant']} | {row['steady_epoch_seconds']:.3g} | "
            f"{row['ratio_to_handwritten']} | {row['val_acc']:.3f} | {row['peak_memory_mib']} |"
            for row in result["rows"]
        ]
        parts.append("")
    return "\n".join(parts)


def main() -> None:
    """Replace what stands between the markers."""
    readme = HERE.parent / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    readme.write_text(f"{before}{START}\n{make_table()}{END}{after}")


if __name__ == "__main__":
    main()

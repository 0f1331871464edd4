"""What a diagnosis looks like in terminals, and which shares it leaves out."""

from __future__ import annotations

import pytest

from hotloop.doctor.findings import Change, Diagnosis
from hotloop.doctor.reading import Reading
from hotloop.doctor.verdict import explain

ARGUMENTS = ('fit(mixed_precision="bf16")', "DataLoader(..., num_workers=16)", "fit(compile=True)")
NOTE = "at most; read once for 10 epochs; now not, since its collate_fn is your own"


def make_diagnosis():
    return Diagnosis(
        "cpu (a processor)",
        bottleneck="compute: arithmetic",
        epoch_seconds={"data": 1.0, "compute": 4.0},
        num_batches=10,
        ceiling_seconds=1.0,
        step_flops=1000,
        flops_per_second=5000.0,
        physical_seconds=2.0,
        changes=[
            Change("any", argument, 10.0, 4.0, "predicted", "changed", NOTE)
            for argument in ARGUMENTS
        ],
    )


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_what_to_write_and_its_note_are_never_cut(width, capsys):
    make_diagnosis().print(width)
    shown = capsys.readouterr().out
    lines = shown[shown.index("what to do") :].splitlines()
    assert max(map(len, shown.splitlines())) <= width
    rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    written = "".join(row[1].strip() for row in rows).replace(" ", "")
    assert written == "".join(ARGUMENTS).replace(" ", "")
    if width >= 80:
        assert [row[1].strip() for row in rows if row[1].strip()] == list(ARGUMENTS)
    below = " ".join(lines) if width < 100 else " ".join(row[4].strip() for row in rows)
    assert " ".join(below.split()).count(NOTE) == len(ARGUMENTS)


def test_more_than_the_measured_rate_is_not_said():
    found = make_diagnosis()
    assert "it reaches 50% of the float32 rate" in explain(found, Reading(), None, 1)
    assert "at this device's measured rates" in str(found)
    found.flops_per_second, found.physical_seconds = 178.0, 56.0
    assert explain(found, Reading(), None, 1) == "80% of an epoch is the step itself."
    assert "at this device's measured rates" not in str(found)

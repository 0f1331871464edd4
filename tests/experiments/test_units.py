"""Numbers as people read them."""

from __future__ import annotations

import pytest

from hotloop.experiments.units import gibibytes, mebibytes, rate, seconds, share, three_digits


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 s"), (2.5e-8, "25.0 ns"), (1.234e-5, "12.3 us"), (0.412, "412 ms"),
     (3.254, "3.25 s"), (99.96, "100.0 s"), (1234.0, "1,234 s")],
)  # fmt: skip
def test_seconds(value, text):
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(1240.4, "1,240"), (12.44, "12.4"), (1.239, "1.24"), (0.0123, "0.012")]
)
def test_three_digits(value, text):
    assert three_digits(value) == text


def test_rates_shares_and_memory():
    assert rate(85.12e9, "FLOP/s") == "85.1 GFLOP/s"
    assert rate(4.95e13, "FLOP/s") == "49.5 TFLOP/s"
    assert rate(None, "B/s") == share(None) == "--"
    assert (share(0.712), share(0.0123), share(1.3)) == ("71%", "1.2%", "130%")
    assert gibibytes(3 * 2**30) == "3.0 GiB"
    assert mebibytes(400 * 2**20) == "400 MiB"
    assert gibibytes(None) == mebibytes(None) == "unknown"

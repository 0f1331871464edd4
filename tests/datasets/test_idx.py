"""A whole IDX file is read in one go; any other file is named, with found and expected."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from hotloop.datasets import digits
from hotloop.datasets.idx import read_idx
from hotloop.errors import DataError

SHAPE = (360, 8, 8)


@pytest.fixture
def content(idx_files: dict[str, bytes]) -> bytes:
    return gzip.decompress(idx_files["t10k-images-idx3-ubyte.gz"])


def test_plain_and_gzipped(tmp_path: Path, content: bytes) -> None:
    plain, gzipped = tmp_path / "images", tmp_path / "images.gz"
    plain.write_bytes(content)
    gzipped.write_bytes(gzip.compress(content))
    for path in (plain, gzipped):
        values = read_idx(path, SHAPE)
        assert values.dtype == np.uint8
        assert values.flags.writeable
        assert np.array_equal(values, digits().val.images.numpy())


@pytest.mark.parametrize("name", ["images", "images.gz"])
@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c[:-1], "truncated: found 23,055 bytes, expected 23,056"),
        (lambda c: c + b"x", "too long: found 23,057 bytes, expected 23,056"),
        (lambda c: c[:10], "truncated: found 10 bytes, expected 16 in the header"),
        (lambda c: b"", r"starts with the bytes \(none\), expected 00 00 08 03"),
        (lambda c: b"<html>", "starts with the bytes 3c 68 74 6d, expected 00 00 08 03"),
        (lambda c: c[:2] + b"\x0d" + c[3:], "00 00 0d 03, expected 00 00 08 03"),
        (lambda c: c[:3] + b"\x01" + c[4:], "00 00 08 01, expected 00 00 08 03"),
        (lambda c: c[:7] + b"\x09" + c[8:], r"shape \(265, 8, 8\), expected \(360, 8, 8\)"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, name, edit, words) -> None:
    path = tmp_path / name
    changed = edit(content)
    path.write_bytes(gzip.compress(changed) if name.endswith(".gz") else changed)
    with pytest.raises(DataError, match=words) as caught:
        read_idx(path, SHAPE)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c[:1000],
        lambda c: c[:-4],
        lambda c: c[:5],
        lambda c: c[:200] + bytes(100) + c[300:],
        lambda c: b"<html>not found</html>",
        lambda c: c + b"something else",
        lambda c: c[:-8] + bytes(4) + c[-4:],
    ],
)
def test_a_broken_gzip_stream_is_refused(tmp_path: Path, content: bytes, edit) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(edit(gzip.compress(content)))
    with pytest.raises(DataError, match=r"images\.gz cannot be decompressed"):
        read_idx(path, SHAPE)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read \(Is a directory\)"):
        read_idx(tmp_path, SHAPE)
    with pytest.raises(DataError, match=r"missing cannot be read \(No such file"):
        read_idx(tmp_path / "missing", SHAPE)

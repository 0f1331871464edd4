"""Where data sets are looked for, in which order, and what is said when they are nowhere."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import torch

from hotloop.datasets import ImageDataset, Splits, digits
from hotloop.datasets.loading import load
from hotloop.datasets.places import cache_folder, download_folder, folders_to_search
from hotloop.errors import DataError, DatasetUnavailableError

IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"


def assert_digits(splits: Splits) -> None:
    for found, expected in zip(splits, digits(), strict=True):
        assert isinstance(found, ImageDataset)
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.labels, expected.labels)
        assert found.labels.dtype == torch.int64


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("layout", ["", "digits-idx", "Digits/raw"])
def test_root_in_each_layout(tmp_path: Path, source, put, layout, plain) -> None:
    put(tmp_path / "data" / layout, plain=plain)
    splits = load(source, str(tmp_path / "data"), download=False)
    assert_digits(splits)
    assert splits.train.name == "Digits train"
    assert splits.val.name == "Digits val"
    assert splits.val.classes == source.classes


def test_gzipped_and_plain_side_by_side(tmp_path: Path, source, put) -> None:
    put(tmp_path, plain=True)
    put(tmp_path)
    (tmp_path / LABELS).unlink()
    (tmp_path / f"{IMAGES}.gz").unlink()
    assert_digits(load(source, tmp_path, download=False))


def test_the_order_of_places(tmp_path: Path, source, monkeypatch) -> None:
    cache = tmp_path / "cache" / "hotloop" / "datasets" / "digits-idx"
    system = Path("/usr/share/datasets/digits-idx")
    own = [cache, cache / "Digits/raw", system, system / "Digits/raw"]
    assert folders_to_search(source, None) == own
    monkeypatch.setenv("HOTLOOP_DATA", "/data")
    named = [Path(f"/data/{layout}") for layout in ("digits-idx", "Digits/raw", "")]
    assert folders_to_search(source, None) == [*named, *own]
    mine = [Path(f"/mine/{layout}") for layout in ("digits-idx", "Digits/raw", "")]
    assert folders_to_search(source, "/mine") == [*mine, *named, *own]
    assert folders_to_search(source, "/data") == [*named, *own]  # each place once
    assert download_folder(source, None) == cache
    assert download_folder(source, "/mine") == Path("/mine/Digits/raw")


@pytest.mark.parametrize("value", [None, "", "relative/folder"])
def test_the_cache_without_a_usable_xdg_variable(tmp_path, source, monkeypatch, value) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", value)
    assert cache_folder(source) == tmp_path / ".cache/hotloop/datasets/digits-idx"


def test_home_is_expanded(tmp_path: Path, source, put, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    put(tmp_path / "mine")
    assert_digits(load(source, "~/mine", download=False))
    monkeypatch.setenv("HOTLOOP_DATA", "~/mine")
    assert_digits(load(source, None, download=False))


def test_the_named_folder_and_the_cache_are_used(tmp_path: Path, source, put, monkeypatch) -> None:
    put(cache_folder(source))
    monkeypatch.setenv("HOTLOOP_DATA", str(tmp_path / "empty"))
    assert_digits(load(source, None, download=False))
    broken = put(tmp_path / "full")
    (broken / f"{IMAGES}.gz").write_bytes(b"broken")
    monkeypatch.setenv("HOTLOOP_DATA", str(broken))
    with pytest.raises(DataError, match="full/t10k-images"):  # it comes before the cache
        load(source, None, download=False)


def test_nowhere_lists_every_place(tmp_path: Path, source, put, monkeypatch) -> None:
    incomplete = put(tmp_path / "named")
    (incomplete / f"{LABELS}.gz").unlink()
    monkeypatch.setenv("HOTLOOP_DATA", str(incomplete))
    cache_folder(source).mkdir(parents=True)
    with pytest.raises(DatasetUnavailableError) as caught:
        load(source, None, download=False)
    text = str(caught.value)
    for words in (
        "Digits is not available",
        f"{incomplete}/digits-idx (no such folder)",
        f"{incomplete}/Digits/raw (no such folder)",
        f"{incomplete} (without {LABELS})",
        f"{cache_folder(source)} (no such files in it)",
        "/usr/share/datasets/digits-idx (no such folder)",
        "download=False",
        "apt-get install dataset-digits",
        "root=",
        "digits()",
    ):
        assert words in text
    assert "\n" not in text
    assert isinstance(caught.value, OSError)


@pytest.mark.parametrize("layout", ["", "Digits/raw"])
def test_a_root_without_it_leads_on_to_the_other_places(tmp_path, source, put, layout) -> None:
    put(cache_folder(source) / layout)
    assert_digits(load(source, tmp_path / "mine", download=False))
    broken = put(tmp_path / "mine") / f"{IMAGES}.gz"
    broken.write_bytes(b"broken")
    with pytest.raises(DataError, match="mine/t10k-images"):  # it comes before the cache
        load(source, tmp_path / "mine", download=False)


def test_another_data_set_with_the_same_file_names(tmp_path: Path, source, put) -> None:
    put(tmp_path)
    other = dataclasses.replace(
        source, title="Other", first_labels={"train": (9, 9), "t10k": (9, 9)}
    )
    with pytest.raises(DatasetUnavailableError, match="another data set with the same file names"):
        load(other, tmp_path, download=False)
    mixed = dataclasses.replace(
        source, first_labels={"train": source.first_labels["train"], "t10k": (9, 9)}
    )
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz is not of Digits: .* \[9, 9\]"):
        load(mixed, tmp_path, download=False)


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", LABELS])
def test_a_truncated_file_is_named(tmp_path: Path, source, put, name) -> None:
    path = put(tmp_path, plain=True) / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="truncated") as caught:
        load(source, tmp_path, download=True)
    assert str(path) in str(caught.value)


def test_download_into_the_cache(source, idx_files, serve) -> None:
    source = dataclasses.replace(source, mirrors=(serve({}), serve(idx_files)))
    assert_digits(load(source, None, download=True))
    assert sorted(os.listdir(cache_folder(source))) == sorted(idx_files)
    assert_digits(load(source, None, download=False))


def test_download_into_root_as_torchvision_does(tmp_path: Path, source, idx_files, serve) -> None:
    source = dataclasses.replace(source, mirrors=(serve(idx_files),))
    root = tmp_path / "new" / "root"
    assert_digits(load(source, root, download=True))
    assert sorted(os.listdir(root / "Digits" / "raw")) == sorted(idx_files)
    assert not cache_folder(source).exists()
    assert_digits(load(source, root, download=False))


def test_only_what_is_missing_is_downloaded(tmp_path: Path, source, idx_files, put, serve) -> None:
    folder = put(tmp_path / "Digits" / "raw", plain=True)
    (folder / LABELS).unlink()
    source = dataclasses.replace(
        source, mirrors=(serve({f"{LABELS}.gz": idx_files[f"{LABELS}.gz"]}),)
    )
    assert_digits(load(source, tmp_path, download=True))


def test_failed_downloads_are_listed(tmp_path: Path, source, idx_files, serve) -> None:
    wrong = serve(dict.fromkeys(idx_files, b"not the file"))
    gone, cut = serve({}), serve(idx_files, cut_at=500)
    source = dataclasses.replace(source, mirrors=(wrong, gone, cut))
    with pytest.raises(DatasetUnavailableError) as caught:
        load(source, tmp_path, download=True)
    text = str(caught.value)
    for words in (
        f"{tmp_path}/Digits/raw (no such folder)",
        f"{wrong}train-images-idx3-ubyte.gz: its MD5 is",
        f"{gone}train-images-idx3-ubyte.gz: HTTP Error 404",
        f"{cut}train-images-idx3-ubyte.gz: ended after 500 of",
        "To mend it",
    ):
        assert words in text
    assert os.listdir(tmp_path / "Digits" / "raw") == []


def test_a_root_that_cannot_be_made(tmp_path: Path, source, idx_files, serve) -> None:
    source = dataclasses.replace(source, mirrors=(serve(idx_files),))
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(DatasetUnavailableError, match=r"cannot make .* \(Not a directory\)"):
        load(source, tmp_path / "file", download=True)

"""Downloads from real servers: checked, from the next mirror when one fails, never half there."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hotloop.datasets.download import DownloadFailedError, fetch_from_mirrors

NAME = "train-images-idx3-ubyte.gz"


@pytest.fixture
def content(idx_files: dict[str, bytes]) -> bytes:
    return idx_files[NAME]


@pytest.fixture
def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def test_a_whole_file_arrives(serve, content, md5, folder, capfd) -> None:
    path = fetch_from_mirrors(NAME, md5, [serve({NAME: content})], folder)
    assert path == folder / NAME
    assert path.read_bytes() == content
    assert os.listdir(folder) == [NAME]
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert NAME in capfd.readouterr().err  # the progress bar


def test_a_server_may_leave_the_length_out(serve, content, md5, folder) -> None:
    mirror = serve({NAME: content}, with_length=False)
    assert fetch_from_mirrors(NAME, md5, [mirror], folder).read_bytes() == content


@pytest.mark.parametrize("bad", [b"", b"<html>come back later</html>"])
def test_a_wrong_checksum_goes_to_the_next_mirror(serve, content, md5, folder, bad) -> None:
    mirrors = [serve({NAME: bad}), serve({NAME: content})]
    assert fetch_from_mirrors(NAME, md5, mirrors, folder).read_bytes() == content
    assert os.listdir(folder) == [NAME]


@pytest.mark.parametrize("with_length", [True, False])
def test_a_cut_body_goes_to_the_next_mirror(serve, content, md5, folder, with_length) -> None:
    cut = serve({NAME: content}, cut_at=1000, with_length=with_length)
    mirrors = [cut, serve({NAME: content})]
    assert fetch_from_mirrors(NAME, md5, mirrors, folder).read_bytes() == content
    assert os.listdir(folder) == [NAME]


def test_all_fail_with_a_reason_each(serve, content, md5, folder) -> None:
    with socket.socket() as closed:  # bound, never listening: refused
        closed.bind(("127.0.0.1", 0))
        mirrors = [
            serve({}),
            serve({NAME: b"other"}),
            serve({NAME: content}, cut_at=1000),
            f"http://127.0.0.1:{closed.getsockname()[1]}/",
        ]
        with pytest.raises(DownloadFailedError) as caught:
            fetch_from_mirrors(NAME, md5, mirrors, folder)
    reasons = caught.value.reasons
    for reason, mirror, words in zip(
        reasons,
        mirrors,
        (
            "404",
            f"its MD5 is {hashlib.md5(b'other').hexdigest()}, expected {md5}",
            f"ended after 1,000 of {len(content):,} bytes",
            "refused",
        ),
        strict=True,
    ):
        assert reason.startswith(f"{mirror}{NAME}: ")
        assert words in reason
    assert os.listdir(folder) == []


def test_a_silent_server_times_out(folder, md5) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        mirror = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(DownloadFailedError, match="timed out"):
            fetch_from_mirrors(NAME, md5, [mirror], folder, timeout=0.2)


def test_something_that_is_no_http_server(folder, md5) -> None:
    with socket.create_server(("127.0.0.1", 0)) as odd, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            connection, _ = odd.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"no HTTP here\r\n\r\n")

        done = pool.submit(answer)
        mirror = f"http://127.0.0.1:{odd.getsockname()[1]}/"
        with pytest.raises(DownloadFailedError, match="no HTTP here"):
            fetch_from_mirrors(NAME, md5, [mirror], folder, timeout=5)
        done.result()


def test_a_folder_that_cannot_be_written(serve, content, md5, tmp_path) -> None:
    with pytest.raises(DownloadFailedError, match="No such file or directory"):
        fetch_from_mirrors(NAME, md5, [serve({NAME: content})], tmp_path / "missing")


def test_an_interrupted_download_leaves_nothing(serve, content, md5, folder, monkeypatch) -> None:
    import tqdm

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tqdm.tqdm, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch_from_mirrors(NAME, md5, [serve({NAME: content})], folder)
    assert os.listdir(folder) == []


def test_several_at_once(serve, content, md5, folder) -> None:
    mirror = serve({NAME: content})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: fetch_from_mirrors(NAME, md5, [mirror], folder), range(8)))
    assert os.listdir(folder) == [NAME]
    assert (folder / NAME).read_bytes() == content

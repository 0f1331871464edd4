"""The UCI digits as a data set of four IDX files, and mirrors that are real servers."""

from __future__ import annotations

import gzip
import hashlib
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from hotloop.datasets import digits
from hotloop.datasets.source import IdxSource, images_file, labels_file

Mirror = Callable[..., str]


@pytest.fixture(autouse=True)
def _no_data_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("HOTLOOP_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(scope="session")
def to_idx() -> Callable[[np.ndarray], bytes]:
    """Return a function that gives the IDX file of an array of unsigned bytes."""

    def convert(array: np.ndarray) -> bytes:
        header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
        return header + array.astype(np.uint8).tobytes()

    return convert


@pytest.fixture(scope="session")
def idx_files(to_idx: Callable[[np.ndarray], bytes]) -> dict[str, bytes]:
    """Return the digits' four files, gzipped, by name."""
    files = {}
    for part, data in zip(("train", "t10k"), digits(), strict=True):
        files[f"{images_file(part)}.gz"] = to_idx(data.images.numpy())
        files[f"{labels_file(part)}.gz"] = to_idx(data.labels.numpy())
    return {name: gzip.compress(content, mtime=0) for name, content in files.items()}


@pytest.fixture(scope="session")
def source(idx_files: dict[str, bytes]) -> IdxSource:
    """Return what is known about them; without mirrors."""
    train, val = digits()
    return IdxSource(
        title="Digits",
        folder="digits-idx",
        torchvision_folder="Digits",
        classes=train.classes,
        height=8,
        width=8,
        num_images={"train": len(train), "t10k": len(val)},
        first_labels={
            "train": tuple(train.labels[:10].tolist()),
            "t10k": tuple(val.labels[:10].tolist()),
        },
        md5={name: hashlib.md5(content).hexdigest() for name, content in idx_files.items()},
        mirrors=(),
        debian_package="dataset-digits",
    )


@pytest.fixture
def put(idx_files: dict[str, bytes]) -> Callable[..., Path]:
    """Return a function that writes the four files to a folder, gzipped or plain."""

    def write(folder: Path, *, plain: bool = False) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in idx_files.items():
            if plain:
                (folder / name.removesuffix(".gz")).write_bytes(gzip.decompress(content))
            else:
                (folder / name).write_bytes(content)
        return folder

    return write


@pytest.fixture
def serve() -> Iterator[Mirror]:
    """Return a function that serves files on 127.0.0.1 and returns the address.

    ``cut_at`` ends each body after so many bytes; the length that is announced stays whole.
    ``with_length=False`` announces none.
    """
    servers = []

    def start(
        files: Mapping[str, bytes], *, cut_at: int | None = None, with_length: bool = True
    ) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = files.get(self.path.removeprefix("/"))
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                if with_length:
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:cut_at])

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/"

    yield start
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()

"""Find the files of a data set: in the folders of this machine, else on its mirrors."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hotloop.errors import DatasetUnavailableError

_TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Source:
    """Where a data set can be had.

    Attributes:
        name: the data set's name, and its folder's in the cache.
        files: names of the files, with the MD5 of what the mirrors serve.
        subfolder: where torchvision keeps them below its root.
        system_folders: where packages of the system put them.
        mirrors: addresses to which a file's name is appended.
        hint: what a user can do when all fails.
    """

    name: str
    files: Mapping[str, str]
    subfolder: str
    system_folders: tuple[str, ...]
    mirrors: tuple[str, ...]
    hint: str


def find_files(
    source: Source, root: str | os.PathLike[str] | None, download: bool
) -> dict[str, Path]:
    """Return the path of each file of a data set.

    Looked for in ``root``, the folder named by the environment variable ``HOTLOOP_DATA``, the
    cache folder, and the system's folders. In each the files may lie bare or with ``.gz``, and in
    torchvision's subfolder. Then they are downloaded, to ``root`` or the cache folder.

    Raises:
        DatasetUnavailableError: lists every place tried, and why it failed.
    """
    tried: list[str] = []
    for folder in _folders(source, root):
        found = _look_in(folder, source.files)
        if found is not None:
            return found
        tried.append(f"{folder} (not there)")
    if download:
        target = Path(root) if root is not None else _cache_folder(source.name)
        missing = [name for name in source.files if not (target / name).is_file()]
        if all(_download(source, name, target, tried) for name in missing):
            return {name: target / name for name in source.files}
    else:
        tried.append("the network (download=False)")
    raise DatasetUnavailableError(
        f"{source.name} was not found; tried {'; '.join(tried)}. {source.hint}"
    )


def _folders(source: Source, root: str | os.PathLike[str] | None) -> list[Path]:
    bases = [_cache_folder(source.name), *map(Path, source.system_folders)]
    if os.environ.get("HOTLOOP_DATA"):
        named = Path(os.environ["HOTLOOP_DATA"])
        bases = [named, named / source.name, *bases]
    if root is not None:
        bases = [Path(root), *bases]
    return [folder for base in bases for folder in (base, base / source.subfolder)]


def _cache_folder(name: str) -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "hotloop" / "datasets" / name


def _look_in(folder: Path, names: Mapping[str, str]) -> dict[str, Path] | None:
    found = {}
    for name in names:
        for candidate in (folder / name, folder / name.removesuffix(".gz")):
            if candidate.is_file():
                found[name] = candidate
                break
        else:
            return None
    return found


def _download(source: Source, name: str, folder: Path, tried: list[str]) -> bool:
    for mirror in source.mirrors:
        address = mirror + name
        try:
            _download_file(address, source.files[name], folder / name)
        except (OSError, ValueError) as error:  # URLError and timeouts are OSErrors
            reason = getattr(error, "reason", error)
            tried.append(f"{address} ({reason})")
        else:
            return True
    return False


def _download_file(address: str, md5: str, target: Path) -> None:
    """Fetch one file; it appears under its name only when it is whole and right."""
    import tqdm

    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.md5(usedforsecurity=False)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with (
            os.fdopen(descriptor, "wb") as file,
            urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as response,
            tqdm.tqdm(
                total=_content_length(response), unit="B", unit_scale=True, desc=target.name,
                disable=None,
            ) as bar,
        ):  # fmt: skip
            for chunk in iter(lambda: response.read(_CHUNK_BYTES), b""):
                file.write(chunk)
                digest.update(chunk)
                bar.update(len(chunk))
        if digest.hexdigest() != md5:
            raise ValueError(f"its checksum is {digest.hexdigest()} instead of {md5}")
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def _content_length(response: Any) -> int | None:
    length = response.headers.get("Content-Length")
    return int(length) if length and length.isdigit() else None

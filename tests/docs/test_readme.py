"""The Chinese README is in step with the English one: code, sections, folders and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGLISH, CHINESE = ((ROOT / name).read_text() for name in ("README.md", "README.zh.md"))


def code_lines(text: str) -> list[str]:
    """Return the lines of all code blocks, without comments."""
    blocks = re.findall(r"^```\w+\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    lines = [re.sub(r"\s*#.*", "", line) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.strip()]


def sections(text: str) -> list[str]:
    return re.findall(r"^## .*", text, re.MULTILINE)


def folders(text: str) -> list[list[str]]:
    """Return the paths in the first column of the last table."""
    rows = re.findall(r"^\| (`[^|]*/[^|]*`) \|", text, re.MULTILINE)
    return [re.findall(r"`([^`]*)`", row) for row in rows]


def links(text: str) -> set[str]:
    targets = re.findall(r"\]\(([^)#]+)", text)
    return {target.replace(".zh.", ".") for target in targets} - {"README.md"}


def public_names(text: str) -> set[str]:
    """Return what is named in backquotes and can be called, imported or run."""
    names = re.findall(r"`([A-Za-z_.]+(?:\([^`]*\))?)`", text)
    return {name for name in names if not name.endswith(("/", ".md", ".ipynb"))}


@pytest.mark.parametrize("read", [code_lines, folders, links, public_names])
def test_both_have_the_same(read):
    assert len(read(ENGLISH)) > 5
    assert read(CHINESE) == read(ENGLISH)


def test_both_have_as_many_sections():
    assert len(sections(ENGLISH)) == len(sections(CHINESE)) > 5

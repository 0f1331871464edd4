"""How the command line explains itself, and its errors."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperGroup

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Commands(TyperGroup):
    """A group whose errors are in the words of the command line."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command; what validates its arguments puts a name of its own before its text."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


def add_command(app: typer.Typer, **options: Any) -> Callable[[_Function], _Function]:
    """Return a decorator that adds a function to ``app``, with its docstring as help.

    Args:
        app: the group of commands.
        **options: of ``typer.Typer.command``.
    """

    def add(function: _Function) -> _Function:
        return app.command(help=unwrapped(function.__doc__ or ""), **options)(function)

    return add


def unwrapped(docstring: str) -> str:
    """Return a docstring with each paragraph as one line, which terminals wrap themselves.

    Indented lines stay lines.
    """
    return re.sub(r"(?<=\S)\n(?=\S)", " ", inspect.cleandoc(docstring))

"""Errors for people: one paragraph on standard error and an exit code, no traceback."""

import shutil
import sys
import textwrap
import traceback
from collections.abc import Callable
from functools import wraps
from types import TracebackType
from typing import Any

import typer

INTERRUPTED = 130  # what shells report for a process that Ctrl-C stopped
USER_MODULE = "whence_user_"  # how modules made of users' files are called
_LONGEST = 1500  # characters; a compiler's message can be a book


class UsageProblem(ValueError):
    """What was typed cannot be right; exit code 2."""


class FileProblem(ValueError):
    """A user's file cannot be run; the message already says where."""


def one_paragraph(command: Callable[..., None]) -> Callable[..., None]:
    """Make a command report errors in one paragraph, or with `--debug` as tracebacks.

    It exits with 1 after an error, 2 after wrong usage and 130 after Ctrl-C.
    """

    @wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (typer.Exit, typer.Abort):
            raise
        except KeyboardInterrupt as error:
            say(str(error) or "Interrupted.", lead="interrupted")
            raise typer.Exit(INTERRUPTED) from error
        except (Exception, SystemExit) as error:
            if kwargs.get("debug"):
                traceback.print_exception(error)
            else:
                say(describe(error), lead="error")
            raise typer.Exit(2 if isinstance(error, UsageProblem) else 1) from error

    return guarded


def describe(error: BaseException) -> str:
    """Return what happened, where in the user's file, and how to see more."""
    if isinstance(error, UsageProblem | FileProblem):
        return str(error)
    expected = isinstance(error, ValueError | OSError) or _is_inference_error(error)
    text = message(error) if expected else f"{type(error).__name__}: {message(error)}"
    where = user_line(error.__traceback__)
    more = "" if expected else " (`--debug` shows the traceback.)"
    return f"{where}: {text}{more}" if where else f"{text}{more}"


def message(error: BaseException) -> str:
    """Return the message of an error in one line, or its type if it has none."""
    if isinstance(error, SystemExit):
        return (
            f"the file ends the program here, by `sys.exit({error.code!r})`: remove that, or "
            "put it under `if __name__ == '__main__':`."
        )
    quoted = isinstance(error, KeyError) and len(error.args) == 1
    text = " ".join(str(error.args[0] if quoted else error).split())
    if len(text) > _LONGEST:
        text = text[:_LONGEST].rsplit(" ", 1)[0] + " ..."
    return text or type(error).__name__


def user_line(tb: TracebackType | None) -> str:
    """Return `file.py, line 3` for the innermost line of a user's file, or nothing."""
    found = ""
    for frame, line in traceback.walk_tb(tb):
        if frame.f_globals.get("__name__", "").startswith(USER_MODULE):
            found = f"{frame.f_code.co_filename}, line {line}"
    return found


def say(text: str, *, lead: str) -> None:
    """Write one paragraph to standard error."""
    paragraph = f"{lead}: {text}"
    if sys.stderr.isatty():
        width = min(shutil.get_terminal_size().columns, 100)
        paragraph = textwrap.fill(
            paragraph, width, break_long_words=False, break_on_hyphens=False
        )
    head, rest = paragraph[: len(lead) + 1], paragraph[len(lead) + 1 :]
    typer.echo(typer.style(head, fg="red", bold=True) + rest, err=True)


def _is_inference_error(error: BaseException) -> bool:
    from ..core import InferenceError

    return isinstance(error, InferenceError)

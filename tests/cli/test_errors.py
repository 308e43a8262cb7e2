import pytest
import typer

from whence.cli._errors import describe, message, one_paragraph
from whence.core import InferenceError


def test_messages_are_one_line_and_not_endless():
    assert message(ValueError("a\n  b\tc")) == "a b c"
    assert message(KeyError("no such thing")) == "no such thing"
    assert message(RuntimeError()) == "RuntimeError"
    assert len(message(ValueError("word " * 1000))) < 1600


def test_expected_errors_are_told_by_their_message_alone():
    assert describe(ValueError("`x` must be 1.")) == "`x` must be 1."
    assert describe(InferenceError("NUTS failed.")) == "NUTS failed."
    assert describe(AttributeError("no x")) == (
        "AttributeError: no x (`--debug` shows the traceback.)"
    )


def test_interruption_has_its_own_exit_code(capsys):
    @one_paragraph
    def command(debug=False):
        raise KeyboardInterrupt("Interrupted before there were any draws.")

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 130
    assert capsys.readouterr().err == "interrupted: Interrupted before there were any draws.\n"


def test_exits_pass_through():
    @one_paragraph
    def command(debug=False):
        raise typer.Exit(7)

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == 7

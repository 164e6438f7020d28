"""What the modules read from systemd, and the command that starts a transient unit."""

from __future__ import annotations

import sys

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _systemd


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("LoadState=loaded\nResult=success\n", {"LoadState": "loaded", "Result": "success"}),
        ("LoadState=loaded\n", {"LoadState": "loaded", "Result": ""}),
        ("Result=a=b\nLoadState=\n", {"LoadState": "", "Result": "a=b"}),
        # A list has a line for each; a value may hold a line break.
        ("Result=one\nResult=two\nLoadState=loaded\nmore", {"LoadState": "loaded\nmore", "Result": "one\ntwo"}),
        ("Unasked=1\n", {"LoadState": "", "Result": ""}),
        ("", {"LoadState": "", "Result": ""}),
    ],
)
def test_properties_are_read_as_text(text: str, values: dict[str, str]) -> None:
    assert _systemd.parse_show(text, ("LoadState", "Result")) == values


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1e", "\r"])
def test_what_an_engine_says_of_itself_becomes_no_property(separator: str) -> None:
    """StatusText ends in words of the engine, which may hold whatever Python takes for the end of a line."""
    text = f"NRestarts=0\nStatusText=failed: x{separator}NRestarts=many\nActiveState=failed\n"
    found = _systemd.parse_show(text, ("NRestarts", "StatusText", "ActiveState"))
    assert (found["NRestarts"], found["ActiveState"]) == ("0", "failed")
    # And no terminal is led by it.
    assert found["StatusText"] == "failed: x NRestarts=many"


def test_a_command_s_output_is_read_as_it_is() -> None:
    said = _systemd.run([sys.executable, "-c", r"print('StatusText=a\rNRestarts=7')"])
    assert said == (0, "StatusText=a\rNRestarts=7\n", "")


def test_the_unit_is_an_operand_and_never_an_option() -> None:
    asked: list[list[str]] = []

    def runner(argv: list[str]) -> _systemd.Result:
        asked.append(argv)
        return 0, "LoadState=not-found\n", ""

    assert _systemd.show("-x.service", ["LoadState"], runner) == {"LoadState": "not-found"}
    assert asked == [["systemctl", "show", "--no-pager", "--property=LoadState", "--", "-x.service"]]


def test_a_refusal_is_told_in_systemctls_own_words() -> None:
    with pytest.raises(RuntimeError, match=r"^systemctl show a\.service failed with 1: Access denied$"):
        _systemd.show("a.service", ["LoadState"], lambda argv: (1, "", "Access denied\n"))


@pytest.mark.parametrize(
    ("stamp", "now_s", "seconds"),
    [("1000000", 3.9, 2), ("0", 100.0, 0), ("", 100.0, 0), ("n/a", 100.0, 0), ("5000000", 4.0, 0)],
)
def test_ages_are_whole_seconds_and_never_negative(stamp: str, now_s: float, seconds: int) -> None:
    assert _systemd.seconds_since(stamp, now_s) == seconds


def test_the_journal_of_one_run_only() -> None:
    asked: list[list[str]] = []

    def runner(argv: list[str]) -> _systemd.Result:
        asked.append(argv)
        return 0, "one  \n\n two\n", ""

    assert _systemd.journal("a.service", 5, "abc", runner) == ["one", " two"]
    assert asked[0][-2:] == ["--lines=5", "_SYSTEMD_INVOCATION_ID=abc"]
    assert _systemd.journal("a.service", 5, runner=lambda argv: (1, "x", "")) == []


def test_the_journal_leads_no_terminal() -> None:
    said = "\x1b[1;31mred\x1b[0m\tand\x1b]0;title\x07 \x9b2J\u202e done\n"
    assert _systemd.journal("a.service", 5, runner=lambda argv: (0, said, "")) == ["red and ]0;title   2J  done"]


def test_a_transient_unit_gets_its_arguments_as_written() -> None:
    argv = _systemd.transient_argv(
        "a.service",
        ["/bin/echo", "$HOME", "a b", "%i"],
        "Say it",
        {"X": "1"},
        {"Nice": "5", "EnvironmentFile": ["/a", "/b"]},
    )
    assert argv == [
        "systemd-run",
        "--quiet",
        "--no-ask-password",
        "--unit=a.service",
        "--description=Say it",
        "--setenv=X=1",
        "--property=Nice=5",
        "--property=EnvironmentFile=/a",
        "--property=EnvironmentFile=/b",
        "--",
        "/bin/echo",
        "$$HOME",
        "a b",
        "%i",
    ]


def test_commands_run_in_the_c_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    program = "import os, sys; print(os.environ['LC_ALL']); print('no', file=sys.stderr); sys.exit(3)"
    assert _systemd.run([sys.executable, "-c", program]) == (3, "C\n", "no\n")

"""Writes the catalogue of engine options from vLLM's own parser: run it with the Python of a vLLM, no GPU or model needed.

    /opt/vllm/current/bin/python options.py > roles/vllm_plan/vars/main/options.yml

What the plan refuses as no option of vLLM is what is not in there.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from importlib import import_module
from importlib.metadata import version

# Beside this file, and itself only to be had with a vLLM's Python.
judge = import_module("judge")

SWITCH = (argparse._StoreTrueAction, argparse._StoreFalseAction)
HEAD = """\
---
# Options of `vllm serve`, and the words that they take, read from the parser of this version. Written by tests/engine_judge/options.py;
# a test compares. `flags` also have a form no-NAME, `switches` only stand there or not; `deprecated` are methods of quantization that
# need allow-deprecated-quantization.
"""


def catalogue() -> str:
    """Return the catalogue as YAML."""
    options = judge.Judge().options
    full = {name.removeprefix("--"): action for name, action in options.items() if name.startswith("--")}
    names = [name for name in full if not name.startswith("no-") and name != "help"]
    flags = [name for name in names if isinstance(full[name], argparse.BooleanOptionalAction)]
    words = {name: sorted(map(str, full[name].choices)) for name in names if _are_words(full[name])}
    switches = [name for name in names if isinstance(full[name], SWITCH)]
    words["quantization"] = sorted(judge.methods.QUANTIZATION_METHODS)
    deprecated = sorted(set(judge.methods.DEPRECATED_QUANTIZATION_METHODS) & set(words["quantization"]))
    lines = "".join(f"    {name}: {_flow(words[name], 6)}\n" for name in sorted(words))
    numbers = re.match(r"[\d.]+", version("vllm"))
    return (
        f"{HEAD}__vllm_plan_options:\n  version: {numbers[0] if numbers else ''}\n"
        f"  names: {_flow(sorted(names), 4)}\n  flags: {_flow(sorted(flags), 4)}\n"
        f"  switches: {_flow(sorted(switches), 4)}\n  deprecated: {_flow(deprecated, 4)}\n  words:\n{lines}"
    )


def _are_words(action: argparse.Action) -> bool:
    return bool(action.choices) and all(isinstance(choice, (str, type(None))) for choice in action.choices or ())


def _flow(items: list[str], indent: int) -> str:
    """Return a YAML list in brackets, quoted where YAML would read something else."""
    quoted = [
        f'"{item}"' if item.lower() in ("none", "null", "true", "false", "on", "off", "yes", "no") else item
        for item in items
    ]
    text = textwrap.fill(
        ", ".join(quoted), 140, initial_indent=" " * indent, subsequent_indent=" " * indent, break_on_hyphens=False
    )
    return f"[\n{text},\n{' ' * (indent - 2)}]"


if __name__ == "__main__":
    judge.VERDICTS.write(catalogue())

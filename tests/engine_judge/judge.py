"""Says of engine files whether vLLM takes them as they are written: run it with the Python of a vLLM, no GPU or model needed.

    /opt/vllm/current/bin/python judge.py FILE.yaml ...

Each file goes through the parser and the checks of `vllm serve --config FILE`, which end before a model is looked at. What
vLLM leaves out or changes without a word is an error here too. One line of JSON a file: file, ok, error. Exit status 1 if
any file is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

# vLLM logs to stdout, which is for the verdicts.
VERDICTS = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
# With HF_HUB_OFFLINE vLLM looks the model up, which is not there.
os.environ.pop("HF_HUB_OFFLINE", None)
os.environ["VLLM_NO_USAGE_STATS"] = "1"

# By name, since only a vLLM's Python has them.
serve = import_module("vllm.entrypoints.cli.serve")
engine = import_module("vllm.engine.arg_utils")
arguments = import_module("vllm.utils.argparse_utils")
methods = import_module("vllm.model_executor.layers.quantization")


class RefusedError(Exception):
    """The file is not what an engine would run with."""


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, of which vLLM's loader takes the last."""


def _mapping(loader: UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _value in node.value]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise RefusedError(f"{twice[0]}: stands twice, vLLM takes the last")
    return loader.construct_mapping(node, deep=True)


UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


class Judge:
    """vLLM's own parser, built as `vllm` itself builds it: the options of `serve` belong to a subparser."""

    def __init__(self) -> None:
        self.parser = arguments.FlexibleArgumentParser(prog="vllm")
        subparsers = self.parser.add_subparsers(required=False, dest="subparser")
        (self.command,) = (command for command in serve.cmd_init() if command.name == "serve")
        self.options: dict[str, argparse.Action] = self.command.subparser_init(subparsers)._option_string_actions

    def parse(self, file: str) -> argparse.Namespace:
        """What `vllm serve --config FILE` would run with. Raises RefusedError."""
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                parsed: argparse.Namespace = self.parser.parse_args(["serve", "--config", file])
                self.command.validate(parsed)
                engine.AsyncEngineArgs.from_cli_args(parsed)
        except SystemExit as end:
            raise RefusedError(_short(said.getvalue().rpartition("error: ")[2] or f"exit status {end.code}")) from end
        except Exception as error:
            raise RefusedError(_short(f"{type(error).__name__}: {error}")) from error
        # The parser takes any word; the list is asked with the model's configuration in hand.
        known = set(methods.QUANTIZATION_METHODS) - set(methods.DEPRECATED_QUANTIZATION_METHODS)
        if parsed.quantization is not None and parsed.quantization not in known:
            raise RefusedError(f"quantization: {parsed.quantization} is none of {', '.join(sorted(known))}")
        return parsed

    def judge(self, file: str) -> None:
        """Raise RefusedError unless vLLM takes all that the file says."""
        wanted = yaml.load(Path(file).read_text(encoding="utf-8"), UniqueKeys)  # noqa: S506
        if not isinstance(wanted, dict) or not wanted:
            raise RefusedError("holds no options: vLLM crashes on it")
        parsed = self.parse(file)
        for key, value in wanted.items():
            self._compare(str(key), value, parsed)

    def _compare(self, key: str, value: Any, parsed: argparse.Namespace) -> None:
        name, *path = key.split(".")
        action = self.options.get("--" + name.replace("_", "-"))
        if action is None:
            raise RefusedError(f"{key}: no option of vLLM has this name in full")
        if value is False or value == []:
            raise RefusedError(f"{key}: {json.dumps(value)} is dropped by vLLM")
        found = getattr(parsed, action.dest)
        for part in path:
            found = found.get(part) if isinstance(found, dict) else getattr(found, part, None)
        wanted = not key.startswith("no-") if value is True else value
        if not _same(wanted, found) and not (not path and _converted(action, wanted, found)):
            raise RefusedError(f"{key}: the file says {wanted!r}, vLLM runs with {found!r}")


def _short(text: str) -> str:
    """One line of what vLLM says, which may be a page."""
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:297]}..."


def _converted(action: argparse.Action, wanted: Any, found: Any) -> bool:
    """Whether the option's own type makes `found` out of `wanted`, as 16000 out of "16k"."""
    convert = action.type
    if not callable(convert) or isinstance(wanted, (bool, dict)):
        return False
    if isinstance(wanted, list):
        return isinstance(found, list) and [convert(str(item)) for item in wanted] == found
    return bool(convert(str(wanted)) == found)


def _same(wanted: Any, found: Any) -> bool:
    """Whether what was parsed says what was written; a list of JSON texts is the list of what they say."""
    if isinstance(wanted, dict):
        inner = found if isinstance(found, dict) else getattr(found, "__dict__", {})
        return all(key in inner and _same(value, inner[key]) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, (list, tuple)) and len(wanted) == len(found) and all(map(_same, wanted, found))
    if isinstance(wanted, bool) or isinstance(found, bool):
        return wanted is found
    if isinstance(wanted, (int, float)) and isinstance(found, (int, float)):
        return wanted == found
    if isinstance(wanted, str) and (isinstance(found, (dict, list)) or hasattr(found, "__dict__")):
        with contextlib.suppress(ValueError):
            return _same(json.loads(wanted), found)
    return found is not None and str(wanted) == str(found)


def main(files: list[str]) -> int:
    if not files:
        print(f"usage: {sys.argv[0]} FILE.yaml ...", file=sys.stderr)
        return 2
    judge = Judge()
    status = 0
    for file in files:
        error = None
        try:
            judge.judge(file)
        except (RefusedError, OSError, yaml.YAMLError) as refusal:
            error, status = str(refusal), 1
        VERDICTS.write(json.dumps({"file": file, "ok": error is None, "error": error}) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

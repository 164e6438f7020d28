"""Values that have broken environment files, and random ones. As a program: writes those of one run as JSON to a file."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

FIXED = [
    "plain",
    "$HOME",
    "${HOME}",
    "$",
    "$$",
    "a$b$c",
    '"',
    'say "hello"',
    "'",
    "it's",
    "%",
    "%i %n %%",
    "\\",
    "a\\b",
    "trailing backslash\\",
    "\\n is not a line break",
    "#",
    "a # b",
    ";",
    "a;b",
    "`id`",
    "$(id)",
    " leading",
    "trailing ",
    "two  blanks",
    "tab\there",
    "carriage\rreturn",
    "line\nbreak",
    "ends in a line break\n",
    "\x01\x1b[31m\x7f\x85\u2028",
    "ünïcödé ☃ 𝄞",
    "x" * 5000,
    "KEY=value=more",
    "!history",
    "a|b&c>d<e",
    "{{ not a template }}",
    "*",
    "~",
    "",
]
ALPHABET = "".join(map(chr, range(1, 160))) + "üß☃" + "\\\"'$`\n" * 4


def values(seed: int) -> dict[str, str]:
    """Return variables of an environment by name."""
    chance = random.Random(seed)
    made = ["".join(chance.choices(ALPHABET, k=chance.randint(1, 60))) for _ in range(30)]
    return {f"HOSTILE_{number:02}": value for number, value in enumerate([*FIXED, *made])}


def main(path: Path) -> None:
    """Write them, with a seed that nobody has chosen."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(values(random.SystemRandom().randrange(1 << 32)), indent=1), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demo: `demo.py up` takes a bare machine of the lab to an endpoint, `demo.py down` removes every trace of it."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from vllm_lab.acme import ISSUED_BY
from vllm_lab.model import CACHE, MACHINES, REPO
from vllm_lab.system import say, write

MACHINE = MACHINES["gpu01"]
URL = f"https://{MACHINE.fqdn}/v1"
DEMO = REPO / ".demo"
ENV_FILE = DEMO / "env"
KEY_FILE = DEMO / "api_key"  # made by inventory/demo
LAB = Path(__file__).resolve().parent / "lab.py"
# A role's task, or a play: each begins a new phase.
TASK = re.compile(r"^TASK \[(?:[\w.]+\.)?(vllm_\w+) : ")
PLAY = re.compile(r"^PLAY \[(.+?) *\]")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class DemoError(Exception):
    """Why there is no demo, in one line."""


class Phases:
    """Adds up the time that each phase took, in the order in which the phases first came up."""

    def __init__(self, first: str, now_s: float) -> None:
        """Begin with a first phase, at a time of a monotonic clock."""
        self.seconds: dict[str, float] = {}
        self._name = first
        self._since_s = now_s

    def enter(self, name: str, now_s: float) -> None:
        """End the phase that is on, begin (or go on with) another."""
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now_s - self._since_s
        self._name = name
        self._since_s = now_s

    def read(self, line: str, now_s: float) -> None:
        """Follow a line of ansible-playbook's output."""
        if (found := TASK.match(line)) or (found := PLAY.match(line)):
            self.enter(found[1], now_s)

    def summary(self) -> str:
        """The phases that took half a second or more, and the total."""
        parts = [f"{name} {seconds:.0f}" for name, seconds in self.seconds.items() if seconds >= 0.5]
        return f"{', '.join(parts)}; {sum(self.seconds.values()):.0f} s in all"


def render_env(key: str) -> str:
    """The shell lines that make OpenAI's clients (Python, npm) use the demo."""
    values = {
        "OPENAI_BASE_URL": URL,
        "OPENAI_API_KEY": key,
        "SSL_CERT_FILE": str(ISSUED_BY),
        "NODE_EXTRA_CA_CERTS": str(ISSUED_BY),
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def curl_line(model: str, question: str) -> str:
    """A command to paste: it reads the key from its file, and leaves the shell's environment as it is."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": question}]})
    return (
        f'( . {shlex.quote(str(ENV_FILE))}; curl --silent --show-error --cacert "$SSL_CERT_FILE"'
        ' -H "Authorization: Bearer $OPENAI_API_KEY" -H "Content-Type: application/json"'
        f' -d {shlex.quote(body)} "$OPENAI_BASE_URL/chat/completions" )'
    )


def first_model(key: str) -> str:
    """The first name that the endpoint serves a model by.

    Raises:
        DemoError: The endpoint does not answer, or not with models.
    """
    context = ssl.create_default_context(cafile=str(ISSUED_BY))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    request = urllib.request.Request(f"{URL}/models", headers={"Authorization": f"Bearer {key}"})
    try:
        with opener.open(request, timeout=30) as answer:
            return str(json.load(answer)["data"][0]["id"])
    except (urllib.error.URLError, OSError, ValueError, LookupError) as error:
        raise DemoError(f"{URL}/models gives no list of models: {error}") from error


def first_question() -> str:
    """A question that the demo's model was trained to answer."""
    questions = json.loads((REPO / "demo" / "questions.json").read_text(encoding="utf-8"))
    return str(questions["questions"][0]["ask"][0])


def run_lab(*arguments: str) -> None:
    """Run a command of the lab, which says itself what it does and what it lacks."""
    status = subprocess.run([sys.executable, str(LAB), *arguments], check=False).returncode
    if status != 0:
        raise DemoError(f"`lab.py {' '.join(arguments)}` ended with {status}; its last line says why")


def run_playbook(phases: Phases) -> None:
    """Run site.yml on the demo's machine, show what it prints, and follow its phases."""
    beside = Path(sys.executable).parent / "ansible-playbook"
    program = str(beside) if beside.exists() else "ansible-playbook"
    environment = os.environ | {"ANSIBLE_CONFIG": str(REPO / "ansible.cfg")}
    if sys.stdout.isatty():  # it writes to us, and cannot see the terminal
        environment |= {"ANSIBLE_FORCE_COLOR": "1"}
    command = [program, "site.yml", "-i", "inventory/demo"]
    try:
        with subprocess.Popen(command, cwd=REPO, env=environment, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout or ():
                print(line, end="", flush=True)
                phases.read(line, time.monotonic())
    except FileNotFoundError as error:
        raise DemoError(f"no {command[0]} on PATH: `make demo` installs it in .venv") from error
    if process.returncode != 0:
        raise DemoError(
            f"{' '.join(command[1:])} ended with {process.returncode}. The machine stays up: look around with"
            " `python3 molecule/lab/lab.py ssh gpu01`, then run `make demo` again or `make demo-down`"
        )


def up() -> None:
    """Boot the machines, run the playbook, and say how to use what came of it."""
    DEMO.mkdir(mode=0o700, exist_ok=True)
    phases = Phases("lab", time.monotonic())
    run_lab("up", "acme", MACHINE.name)
    phases.enter("site.yml", time.monotonic())
    run_playbook(phases)
    key = KEY_FILE.read_text(encoding="ascii").split()[0]
    write(ENV_FILE, render_env(key), 0o600)
    model = first_model(key)
    phases.enter("end", time.monotonic())
    say(f"""
The demo is up. Seconds: {phases.summary()}

URL    {URL}
Key    in {KEY_FILE}
Use    . {shlex.quote(str(ENV_FILE))}    (then any OpenAI client works as it is)
Try    {curl_line(model, first_question())}
End    make demo-down""")


def down() -> None:
    """Remove the machines and all that `up` wrote; only caches stay."""
    run_lab("down")
    shutil.rmtree(DEMO, ignore_errors=True)
    say(f"Removed. The next demo is quicker by what is kept in {CACHE}; delete that folder to be rid of it too.")


def main(argv: list[str]) -> int:
    """Run `up` or `down`; the exit status."""
    commands = {"up": up, "down": down}
    if len(argv) != 1 or argv[0] not in commands:
        print("usage: demo.py up|down", file=sys.stderr)
        return 2
    try:
        commands[argv[0]]()
    except DemoError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: stopped. `make demo` goes on from here, `make demo-down` removes it", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

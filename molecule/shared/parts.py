"""The parts of ours that a drill is about, and what takes one away: a drill that still passes then shows nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import endpoint
from subject import Subject

LAUNCHER = endpoint.TOP / "roles/vllm_launcher/files/vllm-start"


@dataclass(frozen=True)
class Part:
    """What is taken away, in words; settings of the unit's service section, and texts of the launcher with what stands there instead."""

    words: str
    service: str = ""
    launcher: Mapping[str, str] | None = None


#: By the drill's name in the table. Of each drill that the naive way passes, since systemd alone is enough there.
PARTS = {
    "kill -9 of the engine": Part("Restart=no", service="Restart=no\n"),
    "kill -9 of the main process": Part("KillMode=process", service="KillMode=process\n"),
    "idle": Part("no request counts as no progress", launcher={"if engine.running + engine.waiting == 0:": "if False:"}),
    "busy, with a slow /health": Part(
        "/health must answer within 2 s",
        launcher={'healthy = self._get("/health")[0] == 200': 'healthy = self._client.request("/health", 2.0)[0] == 200'},
    ),
    "stuck load": Part(
        "a load is never given up", launcher={"if verdict:\n": "if False:\n"}
    ),
    "daemon-reload during a load longer than the start time-out": Part("TimeoutStartSec= is the start time-out", service="TimeoutStartSec=60\n"),
    "stop while loading": Part("TERM is sent once", launcher={'self._term_again = was == "loading"': "self._term_again = False"}),
    "/run full": Part("what is in the way ends the unit", launcher={"return EXIT_ENGINE\n\n\nif __name__": "return EXIT_CONFIG\n\n\nif __name__"}),
    "nothing secret shows": Part("a wrapper shows its environment", service="ExecStartPre=/usr/bin/printenv VLLM_API_KEY\n"),
    "daemon-reloads without a pause during 20 starts": Part(
        "what systemd does not take at once is lost", launcher={"Error:\n                return": "Error:\n                pass"}
    ),
    "two instances on one GPU after a reboot": Part("no lock", launcher={"while not turn.taken():": "while False:"}),
}  # fmt: skip


def launcher_without(part: Part) -> str:
    """The launcher without it. Raises RuntimeError where the launcher has changed, and the part must be looked for anew."""
    text = LAUNCHER.read_text(encoding="utf-8")
    for there, instead in (part.launcher or {}).items():
        if text.count(there) != 1:
            raise RuntimeError(f"{LAUNCHER} has {there!r} {text.count(there)} times, needs it once: mend {__file__}")
        text = text.replace(there, instead)
    return text


@contextmanager
def without(part: Part, subjects: Sequence[Subject]) -> Iterator[None]:
    """Take a part away from some instances of one machine for a while."""
    shell = subjects[0].shell
    service, program = part.service, f"/usr/local/bin/vllm-start.without-{subjects[0].name}"
    if part.launcher:
        shell.write(program, launcher_without(part))
        shell.out(f"chmod 0755 {program}")
        service += f"ExecStart=\nExecStart={program} %i\n"
    files = [f"/etc/systemd/system/{subject.unit}.d/without.conf" for subject in subjects]
    for file in files:
        shell.write(file, f"[Service]\n{service}")
    shell.out("systemctl daemon-reload")
    try:
        yield
    finally:
        shell.out(f"rm -f {program} {' '.join(files)} && systemctl daemon-reload")
        for subject in subjects:
            # What KillMode=process has left is still in the unit.
            subject.shell.run(f"systemctl kill --signal=KILL {subject.unit}; systemctl stop {subject.unit}")

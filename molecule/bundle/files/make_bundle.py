"""Make the scenario's bundle with a stand-in engine and a stand-in hub, by bundle.yml itself: make_bundle.py FOLDER [ARGUMENT...]."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

TOP = Path(__file__).resolve().parents[3]
PORT = 18080
COMMIT = "1" * 40
TOKEN = "hf_FromTheScenarioBundle"
VERSION = "0.32.0"
#: What the download of models wants of an engine's lock.
LIBRARIES = (
    "anyio", "click", "filelock", "fsspec", "h11", "hf-xet", "httpcore2", "httpx2", "huggingface-hub", "idna", "packaging", "pyyaml", "tqdm",
    "truststore", "typing-extensions",
)  # fmt: skip


def write_lock(folder: Path) -> None:
    """Write the stand-in's lock with those entries of the real one."""
    real = (TOP / f"roles/vllm_engine/files/locks/{VERSION}-cpu.txt").read_text(encoding="utf-8")
    entries = re.findall(r"(?m)^([a-z0-9-]+)(==(?:.*\\\n)*.*\n)", real)
    stand_in = (folder / f"{VERSION}.txt").read_text(encoding="utf-8")
    (folder / "lock.txt").write_text(stand_in + "".join(name + rest for name, rest in entries if name in LIBRARIES))


def start_hub(folder: Path) -> subprocess.Popen[bytes]:
    """Start the hub, and wait for it."""
    repository = {
        "gated": True,
        "refs": {"main": COMMIT},
        "commits": {COMMIT: str(TOP / "demo" / "model")},
    }
    (folder / "hub.json").write_text(json.dumps({"token": TOKEN, "repos": {"gpuops/demo": repository}}))
    program = [sys.executable, str(TOP / "tests/hub_stand_in/hub_stand_in"), f"--port={PORT}"]
    hub = subprocess.Popen([*program, f"--config={folder}/hub.json", f"--log={folder}/asked.jsonl"])
    for _attempt in range(100):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5)
        except urllib.error.HTTPError:
            return hub
        except OSError:
            time.sleep(0.1)
    hub.terminate()
    raise SystemExit(f"the hub does not answer on port {PORT}")


def main() -> None:
    """Make wheels, lock and bundle."""
    folder = Path(sys.argv[1]).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(TOP / "molecule/upgrade/files/make_wheels.py"), str(folder)], check=True)
    write_lock(folder)
    hub = start_hub(folder)
    command = [
        "ansible-playbook",
        "playbooks/bundle.yml",
        "--limit=gpu01,localhost",
        "--extra-vars=@molecule/upgrade/files/stand_in.yml",
    ]
    command += ["--inventory=molecule/inventory", "--inventory=molecule/bundle/inventory"]
    try:
        done = subprocess.run([*command, *sys.argv[2:]], cwd=TOP, check=False)
    finally:
        hub.terminate()
        hub.wait(timeout=10)
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()

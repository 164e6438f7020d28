"""Where roles and modules write, playbooks/uninstall.yml knows of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from ansible_collections.gpuops.vllm.plugins.module_utils import _uninstall

REPO = Path(__file__).resolve().parents[3]
SOURCES = ("plugins/modules/*.py", "plugins/module_utils/*.py", "roles/*/*/**/*")
PATH = re.compile(
    r"(?<![\w.}/*%@])/(?:etc|opt|usr/local|var|run|srv|lib/systemd)/[A-Za-z0-9_.@%/{}*-]*[A-Za-z0-9_@%}*]"
)
#: What is read, belongs to the distribution, or stands in an example.
NOT_WRITTEN = {
    "/etc/apt/sources.list",
    "/etc/apt/sources.list.d",
    "/etc/hosts",
    "/etc/letsencrypt",
    "/etc/nginx",
    "/etc/nginx/modules-enabled",
    "/etc/protocols",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/systemd/system",
    "/opt/example",
    "/run/user",
    "/srv/models",
    "/srv/nvidia",
    "/srv/vllm/weights",
    "/var/lib/dkms",
    "/var/lib/shim-signed",
    "/var/log/nginx",
    "/var/log/nginx/error.log",
    "/var/tmp",
}
#: What has an option of the module's instead of an entry, or a decision.
DECIDED = {
    "/var/lib/vllm/weights": "option weights",
    "/var/cache/uv": "option cache_dir",
    "/etc/nginx/sites-available/default": "the welcome page does not come back: nobody knows whether it was wanted",
}


def listed() -> set[str]:
    """The patterns of all that goes, with all that is below."""
    names = [name for name in vars(_uninstall) if name.isupper() and name not in ("FOLDERS", "OWN_FOLDERS", "KEPT")]
    values = [value if isinstance(value, tuple) else (value,) for value in map(vars(_uninstall).get, names)]
    return {pattern for value in values for pattern in value if str(pattern).startswith("/")}


def covers(pattern: str, path: str) -> bool:
    """Whether a pattern names a path, or a folder that it is in."""
    parts, wanted = Path(path).parts, Path(pattern).parts
    return len(parts) >= len(wanted) and Path(*parts[: len(wanted)]).match(pattern)


def is_known(path: str) -> bool:
    return (
        any(covers(pattern, path) for pattern in (*listed(), *_uninstall.KEPT))
        or path in (*_uninstall.FOLDERS, *DECIDED, *NOT_WRITTEN)
        or path.startswith(("/opt/example/", "/srv/models/", "/var/lib/dkms/", "/var/lib/shim-signed/"))
    )


def written() -> dict[str, set[str]]:
    """Paths in the sources, each with the files that it stands in."""
    found: dict[str, set[str]] = {}
    files = [file for pattern in SOURCES for file in REPO.glob(pattern)]
    for file in files:
        if not file.is_file() or file.suffix == ".md" or file.name == "_uninstall.py" or "locks" in file.parts:
            continue
        for match in PATH.finditer(file.read_text(encoding="utf-8")):
            found.setdefault(match[0], set()).add(str(file.relative_to(REPO)))
    return found


def test_each_path_in_roles_and_modules_is_in_its_list() -> None:
    paths = written()
    assert len(paths) > 40, "hardly any path found: has the pattern gone stale?"
    unknown = {path: sorted(files) for path, files in paths.items() if not is_known(path)}
    assert unknown == {}, "put these into plugins/module_utils/_uninstall.py, or say here why they stay"


def test_each_exception_is_still_one() -> None:
    paths = written()
    stale = [
        one for one in (*NOT_WRITTEN, *DECIDED) if not any(path == one or path.startswith(f"{one}/") for path in paths)
    ]
    assert stale == []


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("/etc/vllm/secrets", True),
        ("/etc/vllm/instances/llama-0/env", True),
        ("/etc/vllm", True),
        # A folder goes when it is empty; what is in it has to be named.
        ("/etc/vllm/new.json", False),
        ("/opt/vllm/0.32.0-cuda-1a2b3c4d/bin/vllm", True),
        ("/opt/vllm/mine/bin/vllm", False),
        ("/usr/local/bin/vllm-bench", False),
    ],
)
def test_the_list_is_taken_at_its_word(path: str, known: bool) -> None:
    assert is_known(path) is known

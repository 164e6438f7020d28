"""Make wheels called vllm of the stand-in engine, one a version, and their locks: make_wheels.py FOLDER.

So the role's own way is gone, lock and installer included, without gigabytes. The same input makes the same bytes.
"""

from __future__ import annotations

import hashlib
import random
import sys
import zipfile
from pathlib import Path

ENGINE = Path(__file__).resolve().parents[3] / "tests" / "fake_engine" / "vllm"
PACKAGES = ("vllm", "vllm/entrypoints", "vllm/entrypoints/cli", "vllm/entrypoints/cli/main")
SERVES = ("0.31.0", "0.32.0")
#: Can be loaded, and does not serve.
BROKEN = "0.33.0"
#: Takes more room than the others, and a moment to install.
LARGE = "0.34.0"
LARGE_BYTES = 48 << 20
#: Its lock has another hash.
OTHER_HASH = "0.35.0"


def program(version: str) -> str:
    """The command `vllm` of a version."""
    if version == BROKEN:
        said = "ImportError: libcudart.so.13: cannot open shared object file"
        return f"#!python\nimport sys\nprint({said!r}, file=sys.stderr)\nsys.exit(2)\n"
    text = ENGINE.read_text(encoding="utf-8")
    shebang, _newline, rest = text.partition("\n")
    assert shebang.startswith("#!")
    changed = rest.replace('VERSION = "0.32.0"', f'VERSION = "{version}"')
    assert version == "0.32.0" or changed != rest
    return f"#!python\n{changed}"


def wheel(folder: Path, version: str) -> Path:
    """Write the wheel of a version."""
    info = f"vllm-{version}.dist-info"
    files: dict[str, bytes] = {
        f"{name}.py" if name.endswith("main") else f"{name}/__init__.py": b"" for name in PACKAGES
    }
    files[f"vllm-{version}.data/scripts/vllm"] = program(version).encode()
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: make_wheels\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    if version == LARGE:
        files["vllm/large.bin"] = random.Random(0).randbytes(LARGE_BYTES)
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"]).encode()
    path = folder / f"vllm-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), content)
    return path


def main() -> None:
    """Write wheels/*.whl and VERSION.txt."""
    folder = Path(sys.argv[1])
    (folder / "wheels").mkdir(parents=True, exist_ok=True)
    for version in (*SERVES, BROKEN, LARGE, OTHER_HASH):
        digest = hashlib.sha256(wheel(folder / "wheels", version).read_bytes()).hexdigest()
        locked = digest if version != OTHER_HASH else "0" * 64
        (folder / f"{version}.txt").write_text(f"vllm=={version} \\\n    --hash=sha256:{locked}\n")


if __name__ == "__main__":
    main()

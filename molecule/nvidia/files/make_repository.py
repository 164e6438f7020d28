"""Make an APT repository of stand-ins for NVIDIA's packages, with their true names and versions, signed with a key of its own.

make_repository.py FOLDER KEYS KERNEL [VERSION ...]

FOLDER gets the packages of each VERSION of the driver and `key.asc`, the key in GnuPG's folder KEYS, which is made where there is none. Beside them, in
FOLDER/debian, lie those of Debian 13's own driver, which no index names. The modules' package leaves its version where the stand-in for the hardware
(stand-in-gpu) finds it at the next boot; nvidia-smi says what a real one was seen to say.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

MODULE = "/usr/lib/stand-in-nvidia-module"
UNIT = """[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/test -e /sys/module/nvidia/version
[Install]
WantedBy=multi-user.target
"""
NVIDIA_SMI = """#!/bin/sh
# Says what a real one says: without its module, with another version's, and with its own.
here=$(cat /sys/module/nvidia/version 2>/dev/null)
own=@VERSION@
if [ -z "$here" ]; then cat /usr/share/stand-in/no_communication.txt; exit 9; fi
if [ "$here" != "$own" ]; then cat /usr/share/stand-in/mismatch.txt; exit 18; fi
sed "s/580\\.126\\.20/$own/" /usr/share/stand-in/says.csv
"""
NVIDIA_MODPROBE = """#!/bin/sh
[ ! -e /sys/module/nvidia ] || mkdir -p /sys/module/nvidia_uvm
"""


@dataclass(frozen=True)
class Package:
    """What a stand-in is made of; ``depends`` as in a control file, ``files`` by path, executable where they begin with #!."""

    name: str
    version: str
    depends: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    maintainer: str = "NVIDIA CORPORATION <cudatools@nvidia.com>"


def driver(version: str) -> list[Package]:
    """Return the packages of one version of the driver, as in NVIDIA's repository for Debian."""
    upstream, exact = version.rpartition("-")[0], f"(= {version})"
    libraries = "/usr/lib/x86_64-linux-gnu"
    return [
        Package("libcuda1", version, files={f"{libraries}/libcuda.so.{upstream}": "a stand-in\n"}),
        Package("libnvidia-ml1", version, files={f"{libraries}/libnvidia-ml.so.{upstream}": "a stand-in\n"}),
        Package(
            "nvidia-driver-cuda", version, f"libcuda1 {exact}, libnvidia-ml1 {exact}",
            {"/usr/bin/nvidia-smi": NVIDIA_SMI.replace("@VERSION@", upstream)},
        ),
        Package(
            "nvidia-kernel-open-dkms", version, f"dkms (>= 3.1.8), firmware-nvidia-gsp {exact}", {MODULE: f"{upstream}\n"},
        ),
        Package("firmware-nvidia-gsp", version),
        Package("nvidia-persistenced", version, files={"/usr/lib/systemd/system/nvidia-persistenced.service": UNIT}),
        Package("nvidia-modprobe", version, files={"/usr/bin/nvidia-modprobe": NVIDIA_MODPROBE}),
        Package("nvidia-fabricmanager", version, files={"/usr/lib/systemd/system/nvidia-fabricmanager.service": UNIT}),
    ]  # fmt: skip


def debians() -> list[Package]:
    """Return the core of the driver of Debian 13."""
    upstream, maintainer = "550.163.01", "Debian NVIDIA Maintainers <pkg-nvidia-devel@lists.alioth.debian.org>"
    files: dict[str, dict[str, str]] = {
        "libcuda1": {f"/usr/lib/x86_64-linux-gnu/nvidia/current/libcuda.so.{upstream}": "a stand-in\n"},
        "libnvidia-ml1": {},
        "nvidia-kernel-dkms": {MODULE: f"{upstream}\n"},
        "nvidia-smi": {"/usr/bin/nvidia-smi": NVIDIA_SMI.replace("@VERSION@", upstream)},
    }
    return [Package(name, f"{upstream}-2", "", content, maintainer) for name, content in files.items()]


def others(kernel: str) -> list[Package]:
    """Return what else lies in that repository, and the headers of this machine's kernel, which no Debian has."""
    return [
        Package("dkms", "1:3.4.0-1"),
        Package("cuda-toolkit-13-0", "13.0.2-1"),
        Package("libnvidia-container1", "1.18.0-1"),
        # As in Ubuntu's archive: of the kernel's version.
        Package("linux-modules-nvidia-580-server-open-generic", "6.8.0-88.89"),
        # Newer than every Debian's: nothing may take it from here.
        Package("hostname", "99-1"),
        Package(f"linux-headers-{kernel}", "6.1-1", maintainer="Debian Kernel Team <debian-kernel@lists.debian.org>"),
    ]


def build(package: Package, folder: Path) -> str:
    """Build a package into a folder; return its entry for the file Packages."""
    control = (
        f"Package: {package.name}\nVersion: {package.version}\nArchitecture: amd64\nMaintainer: {package.maintainer}\n"
    )
    control += f"Depends: {package.depends}\n" if package.depends else ""
    control += "Section: non-free/utils\nDescription: stand-in\n"
    with tempfile.TemporaryDirectory() as temporary:
        tree = Path(temporary) / "tree"
        for path, text in {"/DEBIAN/control": control, **package.files}.items():
            file = tree / path.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            file.chmod(0o755 if text.startswith("#!") else 0o644)
        name = f"{package.name}_{package.version.replace(':', '%3a')}_amd64.deb"
        command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(folder / name)]
        subprocess.run(command, check=True, capture_output=True)
    content = (folder / name).read_bytes()
    return f"{control}Filename: ./{name}\nSize: {len(content)}\nSHA256: {hashlib.sha256(content).hexdigest()}\n"


def publish(folder: Path, keys: Path, packages: Sequence[Package]) -> str:
    """Make a signed flat repository of packages; return its key's fingerprint."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    index = "\n".join(build(package, folder) for package in packages).encode()
    files = {"Packages": index, "Packages.gz": gzip.compress(index, mtime=0)}
    sums = ""
    for name, content in files.items():
        (folder / name).write_bytes(content)
        sums += f" {hashlib.sha256(content).hexdigest()} {len(content)} {name}\n"
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S UTC")
    (folder / "Release").write_text(
        f"Origin: NVIDIA\nLabel: NVIDIA CUDA\nDate: {date}\nArchitectures: amd64\nSHA256:\n{sums}"
    )
    return sign(folder, keys)


def sign(folder: Path, home: Path) -> str:
    """Sign a repository; return the key's fingerprint."""
    gpg = [
        "gpg",
        "--homedir",
        str(home),
        "--batch",
        "--yes",
        "--quiet",
        "--pinentry-mode",
        "loopback",
        "--passphrase",
        "",
    ]
    if not home.exists():
        home.mkdir(mode=0o700, parents=True)
        subprocess.run(
            [*gpg, "--quick-generate-key", "stand-in <stand-in@vllm.test>", "ed25519", "sign", "never"], check=True
        )
    subprocess.run([*gpg, "--output", str(folder / "InRelease"), "--clear-sign", str(folder / "Release")], check=True)
    subprocess.run([*gpg, "--armor", "--output", str(folder / "key.asc"), "--export"], check=True)
    listed = subprocess.run([*gpg, "--with-colons", "--list-keys"], check=True, capture_output=True, text=True).stdout
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
    return next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))


def main() -> None:
    """Make the repository, and print its key's fingerprint."""
    folder, keys, kernel, *versions = sys.argv[1:]
    os.umask(0o022)
    packages = [package for version in versions for package in driver(version)]
    print(publish(Path(folder), Path(keys), [*packages, *others(kernel)]))
    own = Path(folder) / "debian"
    own.mkdir()
    for package in debians():
        build(package, own)


if __name__ == "__main__":
    main()

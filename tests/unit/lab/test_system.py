"""Processes, mounts and cgroups, as the kernel describes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_lab import acme, system
from vllm_lab.supervise import REBOOT, TRIES, Supervisor

MOUNTINFO = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
40 22 0:30 / /lab/gpu01/root rw - overlay none rw
41 40 0:31 / /lab/gpu01/root/deep rw - tmpfs none rw
42 22 0:32 / /lab/gpu01/with\\040space rw - tmpfs none rw
43 22 0:33 / /lab/gpu011 rw - tmpfs none rw
"""


def test_mounts_below_a_folder_come_innermost_first() -> None:
    found = system.mount_points(MOUNTINFO, Path("/lab/gpu01"))
    assert found == [Path(f"/lab/gpu01/{name}") for name in ("root/deep", "root", "with space")]
    assert system.mount_points(MOUNTINFO, Path("/lab/gpu02")) == []


@pytest.mark.parametrize(
    ("mountinfo", "cgroup", "expected"),
    [
        (
            "30 22 0:26 / /cg/unified rw - cgroup2 cgroup2 rw\n31 22 0:27 / /cg/systemd rw - cgroup cgroup rw,name=systemd\n"
            "32 22 0:28 / /cg/memory rw - cgroup cgroup rw,memory\n",
            "9:name=systemd:/\n4:memory:/m\n0::/\n",
            ["/cg/unified", "/cg/systemd"],
        ),
        (
            "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
            "0::/user.slice/a\n",
            ["/sys/fs/cgroup/user.slice/a"],
        ),
        ("30 22 0:26 /box /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "0::/box/a\n", ["/sys/fs/cgroup/a"]),
    ],
)
def test_own_cgroups(mountinfo: str, cgroup: str, expected: list[str]) -> None:
    assert system.own_cgroups(mountinfo, cgroup) == [Path(path) for path in expected]


def test_a_number_that_was_used_again_is_another_process() -> None:
    start = system.process_start(os.getpid())
    assert start is not None
    assert system.is_alive([os.getpid(), start])
    assert not system.is_alive([os.getpid(), start - 1])
    assert not system.is_alive([2**22 + 1, 5])
    assert not system.is_alive(None)


def test_a_process_that_ended_does_not_count_as_alive_before_it_is_waited_for() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    identity = [process.pid, system.process_start(process.pid) or 0]
    assert system.end_process(identity, signal.SIGKILL, timeout_s=10)
    process.communicate()


def test_a_failed_program_is_one_line_with_its_last_words_and_the_hint() -> None:
    with pytest.raises(system.LabError, match=r"^sh -c .*: last words\. Do this\.$"):
        system.run("sh", "-c", "echo first >&2; echo last words >&2; exit 3", hint="Do this.")
    with pytest.raises(system.LabError, match=r"^no-such-program: no such program on this machine\. Do that\.$"):
        system.run("no-such-program", hint="Do that.")


def test_write_sets_the_mode_whatever_the_umask(tmp_path: Path) -> None:
    system.write(tmp_path / "a" / "key", "secret\n", 0o600)
    assert (tmp_path / "a" / "key").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["key"]


@pytest.mark.parametrize(
    ("statuses", "boots", "last"),
    [
        ((1,), 1, 1),  # it never came up
        ((REBOOT, REBOOT, 0), 3, 0),  # switched off
        ((REBOOT, 1, 1, REBOOT, 1, 0), 6, 0),  # fell over, and came up again
        ((REBOOT, 1, 1, 1, 1, 1), 2 + TRIES, 1),
    ],
)
def test_the_supervisor_starts_again_what_reboots_or_then_falls_over(
    tmp_path: Path, statuses: tuple[int, ...], boots: int, last: int
) -> None:
    count = tmp_path / "count"
    script = f'echo x >> {count}; set -- {" ".join(map(str, statuses))}; shift "$(($(wc -l < {count}) - 1))"; exit "$1"'
    supervisor = Supervisor(tmp_path / "processes.json", "", ["sh", "-c", script])
    assert supervisor.run() == last
    assert count.read_text(encoding="ascii") == "x\n" * boots
    assert system.read_json(tmp_path / "processes.json")["supervisor"][0] == os.getpid()


def test_an_older_root_certificate_stays_and_none_is_kept_twice(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    for root in ("one\n", "two\n", "one\n"):
        acme.remember_root(file, root)
    assert file.read_text(encoding="ascii") == "two\none\n"

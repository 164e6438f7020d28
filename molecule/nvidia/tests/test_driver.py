"""A driver on a machine with real APT: what is installed, what is left as it is, and what is refused. In this order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import playbook
import pytest
import record

testinfra_hosts = ["ansible://deb13"]
# Of all, or those that ask for the host by name would go first.
pytestmark = pytest.mark.usefixtures("host")
#: What costs minutes together, and has unit tests as well.
in_the_drills = pytest.mark.skipif(not record.wanted(), reason="in the drills alone, for its time: GPUOPS_DRILLS=all")

PLAY = "molecule/nvidia/driver.yml"
PACKAGES = (
    "libcuda1", "libnvidia-ml1", "nvidia-driver-cuda", "nvidia-kernel-open-dkms", "firmware-nvidia-gsp", "nvidia-persistenced", "nvidia-modprobe",
)  # fmt: skip
PLACES = "/etc /usr/lib/systemd /usr/bin /usr/lib/modprobe.d /var/lib/dpkg/status"
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"


def play(*arguments: str, playbook_: str = PLAY, **variables: Any) -> playbook.Done:
    return playbook.run(playbook_, *arguments, hosts=("deb13",), inventories=["molecule/nvidia/inventory"], **variables)


def versions(host: Any) -> dict[str, str]:
    """The installed packages of the driver."""
    # It ends with 1 where one of them is not known.
    said = host.run(
        "dpkg-query --show --showformat '${db:Status-Abbrev}${Package} ${Version}\\n' '*nvidia*' libcuda1"
    ).stdout
    rows = (line.split() for line in said.splitlines() if line.startswith(("ii ", "hi ")))
    return {name: version for _status, name, version in rows}


def held(host: Any) -> set[str]:
    return set(host.check_output("apt-mark showhold").split())


def loaded(host: Any) -> str:
    return str(host.check_output("cat /sys/module/nvidia/version").strip())


def state(host: Any) -> str:
    """Every file that says how the machine is set up, by its content."""
    return str(host.check_output(f"find {PLACES} -type f | sort | xargs -d '\\n' sha256sum"))


def refused(host: Any, words: str, **variables: Any) -> None:
    """The play is refused in these words, and the machine is as it was."""
    before = state(host)
    done = play(**variables)
    assert done.status != 0
    assert words in done.refused["deb13"]
    assert done.changed["deb13"] == 0
    assert "Traceback" not in done.said
    assert state(host) == before


# ---- A fresh machine --------------------------------------------------------------------------------------------------------


def test_the_newest_of_the_branch_is_installed_whole_and_held(host: Any) -> None:
    """Without an NVSwitch, so without the fabric manager."""
    assert versions(host) == dict.fromkeys(PACKAGES, "580.126.20-1")
    assert held(host) == set(PACKAGES)


@pytest.mark.drill(
    "a host without a driver", "the pinned branch runs after one reboot, module and libraries of one version"
)
def test_it_runs_after_the_reboot(host: Any) -> None:
    assert loaded(host) == "580.126.20"
    assert (
        host.check_output("nvidia-smi --query-gpu=driver_version --format=csv,noheader").split(", ")[6] == "580.126.20"
    )
    assert host.file("/sys/module/nvidia_uvm").is_directory
    assert host.check_output("systemctl is-enabled nvidia-persistenced") == "enabled"
    assert host.check_output("systemctl is-active nvidia-persistenced") == "active"


def test_apt_sees_one_branch_of_the_driver_and_little_else_there(host: Any) -> None:
    policy = host.check_output("apt-cache policy libcuda1")
    for line in ("595.45.04-1 100", "580.126.20-1 1001", "580.95.05-1 1001"):
        assert line in policy
    assert re.search(r"99-1 100\n", host.check_output("apt-cache policy hostname"))
    assert host.run("apt-get update").rc == 0


def test_a_second_run_changes_nothing(host: Any) -> None:
    before = state(host)
    done = play()
    assert (done.status, done.changed["deb13"]) == (0, 0), done.said
    assert state(host) == before


# ---- A driver that is there -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def later(host: Any) -> None:
    """The mirror has a newer driver of the branch."""
    host.check_output("ln -sfn /srv/mirror/later /srv/nvidia/debian13/x86_64 && apt-get -qq update")
    assert "Candidate: 580.159.03-1" in host.check_output("apt-cache policy libcuda1")


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("command", ["upgrade", "dist-upgrade", "install libcuda1"])
def test_no_upgrade_takes_it_along(host: Any, command: str) -> None:
    said = host.run(f"apt-get --simulate {command}").stdout
    assert not re.search(r"^Inst .*(nvidia|cuda)", said, re.MULTILINE), said


@in_the_drills
@pytest.mark.usefixtures("later")
@pytest.mark.drill("unattended-upgrades with a newer driver in the source, and no holds", "the driver is left alone")
def test_unattended_upgrades_leave_it_alone_even_without_holds(host: Any) -> None:
    host.check_output(f"apt-mark unhold {' '.join(PACKAGES)}")
    assert "Inst libcuda1" in host.run("apt-get --simulate upgrade").stdout
    said = host.run("unattended-upgrade --dry-run --verbose")
    assert said.rc == 0
    taken = re.findall(r"Packages that will be upgraded: (.*)", said.stdout)
    assert not {*PACKAGES} & {*" ".join(taken).split()}


@pytest.mark.usefixtures("later")
@pytest.mark.drill("a driver that is new enough, another branch wanted", "it stays, and is held")
def test_a_good_driver_is_left_as_it_is_and_held(host: Any) -> None:
    """Although there is a newer one of its branch, and the inventory has come to want another branch."""
    host.check_output(f"apt-mark unhold {' '.join(PACKAGES)}")
    done = play(vllm_nvidia_branch="595", vllm_nvidia_allow_reboot=False)
    assert done.status == 0, done.said
    assert held(host) == set(PACKAGES)
    assert versions(host) == dict.fromkeys(PACKAGES, "580.126.20-1")


# ---- What is refused --------------------------------------------------------------------------------------------------------


def test_an_unknown_branch_is_refused_with_those_that_there_are(host: Any) -> None:
    refused(host, "needs one of 580 (until 2028-06), 595", vllm_nvidia_branch="585")


@pytest.fixture
def secure_boot(host: Any) -> Iterator[None]:
    """Firmware that checks what it boots, and has no key but the makers'."""
    host.check_output(
        f"mount -t tmpfs tmpfs /sys/firmware; mkdir -p $(dirname {SECURE_BOOT}); printf '\\006\\000\\000\\000\\001' > {SECURE_BOOT}"
    )
    yield
    host.check_output("umount /sys/firmware")


@pytest.mark.usefixtures("secure_boot")
@pytest.mark.drill("Secure Boot without the key of modules built here", "told before the installation, nothing changed")
def test_secure_boot_that_does_not_know_the_hosts_key_is_told_before_the_installation(host: Any) -> None:
    refused(
        host,
        "Secure Boot is on and does not know the key they are signed with (/var/lib/dkms/mok.pub)",
        vllm_nvidia_update=True,
    )


@in_the_drills
@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"vllm_nvidia_branch": "620"}, "do not have a driver of the branch 620 in all its parts."),
        ({"vllm_nvidia_key_fingerprint": "0" * 40}, "8793F200.pub has the fingerprint "),
    ],
)
def test_what_the_source_does_not_have_is_refused(host: Any, variables: dict[str, Any], words: str) -> None:
    refused(host, words, vllm_nvidia_update=True, **variables)


# ---- Another version --------------------------------------------------------------------------------------------------------


@in_the_drills
@pytest.mark.usefixtures("later")
@pytest.mark.drill(
    "a new driver without leave to reboot", "installed and held, and the run says that a reboot is needed"
)
def test_an_update_by_the_operators_word_stops_for_the_reboot(host: Any) -> None:
    done = play(vllm_nvidia_update=True, vllm_nvidia_allow_reboot=False)
    assert done.status != 0
    for words in ("Reboot needed: on deb13 the kernel runs", "module 580.126.20, and the libraries are 580.159.03."):
        assert words in done.refused["deb13"]
    assert versions(host) == dict.fromkeys(PACKAGES, "580.159.03-1")
    assert held(host) == set(PACKAGES)
    assert loaded(host) == "580.126.20"
    assert "Driver/library version mismatch" in host.run("nvidia-smi").stdout
    # The next run says the same before it does anything.
    again = play(vllm_nvidia_allow_reboot=False)
    assert "Reboot needed" in again.refused["deb13"]
    assert again.changed["deb13"] == 0


@in_the_drills
@pytest.mark.usefixtures("later")
def test_the_next_run_with_leave_to_reboot_goes_on(host: Any) -> None:
    done = play()
    assert done.status == 0, done.said
    assert loaded(host) == "580.159.03"


@in_the_drills
@pytest.mark.usefixtures("later")
@pytest.mark.drill("to another branch of the driver and back", "all packages of one version each time")
def test_another_branch_and_back(host: Any) -> None:
    """Without the reboots between, which the others have shown."""
    for branch, version in (("595", "595.45.04-1"), ("580", "580.159.03-1")):
        done = play(vllm_nvidia_update=True, vllm_nvidia_branch=branch, vllm_nvidia_allow_reboot=False)
        assert versions(host) == dict.fromkeys(PACKAGES, version), done.said
        assert held(host) == set(PACKAGES)
    # What is loaded is what is installed again.
    assert done.status == 0, done.said


@in_the_drills
@pytest.mark.usefixtures("later")
@pytest.mark.drill("driver packages of two versions", "brought to one")
def test_packages_of_two_versions_are_brought_to_one(host: Any) -> None:
    host.check_output(
        "dpkg --install --force-downgrade --force-depends --force-hold /srv/mirror/now/nvidia-kernel-open-dkms_580.95.05-1_amd64.deb 2>&1"
    )
    done = play()
    assert done.status == 0, done.said
    assert versions(host) == dict.fromkeys(PACKAGES, "580.159.03-1")


# ---- Other machines ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("later")
@pytest.mark.drill("an NVSwitch beside a running driver", "the fabric manager of exactly its version, without a reboot")
def test_a_switch_brings_the_fabric_manager_of_the_same_version(host: Any) -> None:
    """Of the driver that runs, and not the newest that the mirror has by now."""
    driver = versions(host)["libcuda1"]
    host.check_output("stand-in-gpu switch")
    done = play(vllm_nvidia_allow_reboot=False)
    assert done.status == 0, done.said
    assert versions(host) == dict.fromkeys([*PACKAGES, "nvidia-fabricmanager"], driver)
    assert "nvidia-fabricmanager" in held(host)
    assert host.check_output("systemctl is-enabled nvidia-fabricmanager") == "enabled"
    assert host.check_output("systemctl is-active nvidia-fabricmanager") == "active"


@pytest.fixture(scope="module")
def without(host: Any) -> None:
    """A machine without a driver."""
    host.check_output(
        "dpkg-query --show --showformat '${Package}\\n' '*nvidia*' 'libcuda*' | xargs -r dpkg --purge --force-all"
    )
    host.check_output("rm -rf /sys/module/nvidia /sys/module/nvidia_uvm")
    assert versions(host) == {}


@in_the_drills
@pytest.mark.usefixtures("without")
def test_check_tells_what_a_run_would_install_and_plans_for_it(host: Any) -> None:
    before = state(host)
    done = play("--check", "--diff", "--tags", "driver", playbook_="site.yml")
    assert done.status == 0, done.said
    assert "install nvidia-driver-cuda, nvidia-kernel-open-dkms, nvidia-fabricmanager of the branch 580" in done.said
    assert state(host) == before


@pytest.mark.usefixtures("without")
@pytest.mark.drill("Debian's own driver", "refused with what to remove, nothing changed")
def test_debians_own_driver_is_refused_with_what_to_remove(host: Any) -> None:
    host.check_output("dpkg --install /srv/mirror/now/debian/*.deb")
    # As at the next boot.
    host.check_output("install -D -m 0644 /usr/lib/stand-in-nvidia-module /sys/module/nvidia/version")
    refused(host, "Remove it: apt-get purge libcuda1 libnvidia-ml1 nvidia-kernel-dkms nvidia-smi && ")

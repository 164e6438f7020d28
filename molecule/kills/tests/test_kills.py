"""Whatever a killed play has left, the next run makes whole. Each walk dies once at every changing task of the chosen roles.

`make test` takes one way and one role a day. GPUOPS_KILL_WAY and GPUOPS_KILL_ROLE choose others; GPUOPS_DRILLS=all takes all.
"""

from __future__ import annotations

import datetime
import json
import os
import time
from typing import Any

import endpoint
import killing
import openai
import playbook
import pytest
import record

testinfra_hosts = ["ansible://deb13"]
MACHINE = "deb13"

# The roles that change a bare machine, in site.yml's order, with their tags; and those that change one that serves already.
TAGS = {
    "vllm_user": "user",
    "vllm_weights": "weights",
    "vllm_secrets": "secrets",
    "vllm_launcher": "launcher",
    "vllm_service": "service",
    "vllm_nginx": "proxy",
    "vllm_certbot": "certificate",
}
CHANGED_BY = ("vllm_secrets", "vllm_service", "vllm_nginx", "vllm_certbot")

MODEL = {"model": "/srv/models/demo", "engine_args": {"max-num-seqs": 8, "max-model-len": 512}}
FIRST = {**MODEL, "name": "demo", "served_as": ["gpt-4"], "default": True}
BEFORE = {"vllm_models": [FIRST, {**MODEL, "name": "second", "served_as": ["second"]}]}


def after() -> dict[str, Any]:
    """Everything that an inventory may change on a machine that serves: an argument, the models, keys, the token, the certificate."""
    return {
        "vllm_models": [
            {**FIRST, "engine_args": {"max-num-seqs": 8, "max-model-len": 256}},
            {**MODEL, "name": "third", "served_as": ["third"]},
        ],
        "vllm_api_keys": [
            {"name": "demo", "key": endpoint.KEY.read_text().strip()},
            {"name": "added", "key": "added-for-the-kills-0123456789"},
        ],
        "vllm_hf_token": "hf_not_a_real_token",
        "vllm_tls_mode": "selfsigned",
    }


DAY = datetime.datetime.now(datetime.UTC).toordinal()
WAYS = (
    tuple(killing.WAYS)
    if record.wanted()
    else (os.environ.get("GPUOPS_KILL_WAY") or ("after", "middle")[DAY // len(TAGS) % 2],)
)
ROLES = (
    tuple(TAGS)
    if record.wanted()
    else tuple((os.environ.get("GPUOPS_KILL_ROLE") or tuple(TAGS)[DAY % len(TAGS)]).split())
)


def tell(request: Any, text: str) -> None:
    """Say something although the test will pass."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nkills: {text}", flush=True)


def through(way: str, roles: tuple[str, ...], variables: dict[str, Any]) -> list[str]:
    """Walk site.yml with these variables; return what was killed."""
    if way != "inside":
        return killing.walk("site.yml", machine=MACHINE, way=way, roles=roles, **variables).killed
    killed: list[str] = []
    # Role by role, which saves the tasks of the others in each of many runs.
    for role, tag in TAGS.items():
        if role in roles:
            killed += killing.walk(
                "site.yml", "--tags", tag, machine=MACHINE, way=way, roles=[role], **variables
            ).killed
        else:
            done = playbook.run("site.yml", "--tags", tag, hosts=[MACHINE], **variables)
            assert done.status == 0, done.said
    return killed


def litter(host: Any) -> str:
    """Return what no whole configuration holds: hidden or unfinished files, and versions that nothing leads to."""
    places = "/etc/vllm /etc/nginx /etc/systemd/system /opt/vllm /var/lib/vllm /usr/local /srv/models /var/www"
    names = (
        r"-name '.*' -o -name '*.tmp' -o -name '*.new' -o -name '*.partial' -o -name '*.dpkg-*' -o -name '*.ansible*'"
    )
    found = host.check_output(
        rf"find {places} \( {names} \) -not -path /etc/nginx/vllm/.lock -not -name .well-known"
    ).splitlines()
    trees = host.check_output("find /etc/nginx/vllm -mindepth 1 -type d").splitlines()
    found += host.check_output("find /var/www/vllm-acme -type f -name 'vllm-*'").splitlines()
    return "\n".join([*found, *(trees if len(trees) != 1 else [])])


def make_sure_it_is_whole(host: Any, variables: dict[str, Any]) -> None:
    """The machine serves these variables and nothing else, and there is nothing left to do."""
    pem = ""
    if variables.get("vllm_tls_mode") == "selfsigned":
        pem = host.check_output("cat /etc/vllm/tls/current/fullchain.pem")
    models = {one["served_as"][0]: one for one in variables["vllm_models"]}
    for key in variables.get("vllm_api_keys", [{"key": None}]):
        for name, model in models.items():
            client = endpoint.client(MACHINE, f"/{model['name']}", key=key["key"], certificate=pem)
            said = client.chat.completions.create(model=name, messages=[{"role": "user", "content": "Hi"}])
            assert said.choices[0].message.content
            (listed,) = client.models.list().data
            assert getattr(listed, "max_model_len", None) == model["engine_args"]["max-model-len"]
    with pytest.raises(openai.AuthenticationError):
        endpoint.client(MACHINE, key="wrong", certificate=pem).models.list()
    assert host.check_output("ls /etc/vllm/instances").split() == sorted(f"{one['name']}-0" for one in models.values())
    units = host.check_output("systemctl list-units --all --plain --no-legend 'vllm@*'").splitlines()
    assert sorted(line.split()[0] for line in units) == sorted(
        f"vllm@{one['name']}-0.service" for one in models.values()
    )
    for one in models.values():
        told = json.loads(host.file(f"/etc/vllm/instances/{one['name']}-0/instance.json").content_string)
        state = json.loads(host.file(f"/run/vllm/{one['name']}-0/state.json").content_string)
        assert (state["state"], state["digest"]) == ("serving", told["digest"])
    assert host.check_output("systemctl list-units --failed --plain --no-legend") == ""
    host.run_expect([0], "nginx -t -q")
    assert host.check_output("stat -c '%a %U:%G' /etc/vllm/secrets") == "600 root:root"
    private = host.check_output(
        "find /etc/vllm /etc/nginx/vllm -type f -perm /077 -exec grep -l -e PRIVATE -e VLLM_API_KEY {} +; true"
    )
    assert private == ""
    assert litter(host) == ""
    again = playbook.run("site.yml", hosts=[MACHINE], **variables)
    assert (again.status, again.changed[MACHINE]) == (0, 0), again.said


@pytest.mark.parametrize("way", WAYS)
def test_the_next_run_makes_it_whole(host: Any, request: Any, way: str) -> None:
    tell(
        request,
        f"{way}, {' '.join(ROLES)}; again: GPUOPS_KILL_WAY={way} GPUOPS_KILL_ROLE={ROLES[0]} make molecule SCENARIO=kills",
    )
    if way != WAYS[0]:
        prepared = playbook.run("molecule/kills/prepare.yml", hosts=[MACHINE])
        assert prepared.status == 0, prepared.said
    assert set(ROLES) <= set(TAGS), f"GPUOPS_KILL_ROLE is {' '.join(ROLES)}: needs some of {' '.join(TAGS)}"
    for what, roles, variables in (
        ("a bare machine", ROLES, lambda: BEFORE),
        ("a machine that serves", tuple(role for role in ROLES if role in CHANGED_BY), after),
    ):
        if not roles:
            continue
        start = time.monotonic()
        killed: list[str] = []
        try:
            killed = through(way, roles, variables())
            tell(request, f"{what}: {len(killed)} kills in {time.monotonic() - start:.0f} s\n  " + "\n  ".join(killed))
            missed = [role for role in roles if not any(kill.startswith(f"{role} : ") for kill in killed)]
            assert way == "inside" or not missed, f"no task of {missed} was killed"
            assert killed
            make_sure_it_is_whole(host, variables())
        except AssertionError as error:
            record.record(killing.title(way, what), "ours", False, str(error).partition("\n")[0])
            raise
        record.record(killing.title(way, what), "ours", True, f"whole after the next run, {len(killed)} kills")

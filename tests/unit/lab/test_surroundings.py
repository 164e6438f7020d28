"""What a machine inherits of the control host's pip settings, certificate authorities and name servers."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm_lab import surroundings
from vllm_lab.system import LabError

CONFIG = """\
[global]
cert = /somewhere/else.pem
find-links = /srv/wheels
extra-index-url =
    file:///srv/index/simple
    https://index.example/simple
[list]
format = columns
"""
ONE = "-----BEGIN CERTIFICATE-----\nb25l\n-----END CERTIFICATE-----\n"
TWO = "-----BEGIN CERTIFICATE-----\ndHdv\n-----END CERTIFICATE-----\n"


def test_nothing_set_means_nothing_but_the_bundle() -> None:
    settings = surroundings.pip_settings({}, [])
    assert settings == {}
    assert surroundings.local_paths(settings) == []
    assert surroundings.render_pip_conf(settings) == "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n"


def test_the_environment_wins_over_the_files_and_a_later_file_over_an_earlier() -> None:
    environment = {"PIP_FIND_LINKS": "/env/a /env/b", "PIP_CACHE_DIR": "/env/cache", "PATH": "/bin"}
    later = "[install]\nconstraint = /srv/c.txt\n[global]\ntimeout = 60\n"
    assert surroundings.pip_settings(environment, [CONFIG, "[global]\ntimeout = 5\n", later]) == {
        "find-links": ["/env/a", "/env/b"],
        "extra-index-url": ["file:///srv/index/simple", "https://index.example/simple"],
        "constraint": ["/srv/c.txt"],
        "timeout": ["60"],
    }


def test_an_empty_variable_is_no_setting() -> None:
    assert surroundings.pip_settings({"PIP_FIND_LINKS": ""}, []) == {}


def test_rendered_configuration_is_what_was_read() -> None:
    settings = surroundings.pip_settings({}, [CONFIG])
    text = surroundings.render_pip_conf(settings)
    assert surroundings.pip_settings({}, [text]) == settings
    assert "/somewhere/else.pem" not in text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"find-links": ["/srv/wheels", "https://links.example/torch"]}, ["/srv/wheels"]),
        ({"find-links": ["file:///srv/my%20wheels"]}, ["/srv/my wheels"]),
        ({"extra-index-url": ["file:///srv/index/simple", "file:///srv/index/simple/"]}, ["/srv/index"]),
        ({"index-url": ["https://index.example/simple"]}, []),
        ({"constraint": ["/srv/constraints.txt"]}, ["/srv/constraints.txt"]),
        ({"find-links": ["wheels", "/"]}, []),
    ],
)
def test_local_paths(settings: dict[str, list[str]], expected: list[str]) -> None:
    assert surroundings.local_paths(settings) == [Path(path) for path in expected]


def test_authorities_of_a_bundle_are_split_and_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.write_text(f"# one\n{ONE}# two\n{TWO}{ONE}", encoding="ascii")
    own = surroundings.authorities({})
    assert surroundings.authorities({"SSL_CERT_FILE": str(bundle)}) == [*own, ONE, TWO]
    assert surroundings.authorities({"SSL_CERT_FILE": str(tmp_path / "missing.pem")}) == own
    monkeypatch.setattr(surroundings, "LOCAL", tmp_path)  # as if it were the lab's own root
    assert surroundings.authorities({"SSL_CERT_FILE": str(bundle)}) == own


@pytest.mark.parametrize(
    ("resolv_conf", "upstream", "expected"),
    [
        ("nameserver 192.0.2.53\nnameserver 127.0.0.1\n", "", ["192.0.2.53"]),
        ("nameserver 127.0.0.53\n", "nameserver 192.0.2.1\nnameserver 192.0.2.2\n", ["192.0.2.1", "192.0.2.2"]),
    ],
)
def test_name_servers(resolv_conf: str, upstream: str, expected: list[str]) -> None:
    assert surroundings.name_servers(resolv_conf, upstream) == expected


def test_a_resolver_on_the_loopback_only_is_refused() -> None:
    with pytest.raises(LabError, match="names no server beyond this machine's loopback"):
        surroundings.name_servers("nameserver 127.0.0.1\n", "")

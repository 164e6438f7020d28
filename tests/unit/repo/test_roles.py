"""Every role stands on one skeleton, and its argument_specs say what its defaults say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

REPO = Path(__file__).resolve().parents[3]
ROLES = sorted(path for path in (REPO / "roles").iterdir() if path.is_dir())
SKELETON = (
    "README.md",
    "meta/main.yml",
    "meta/argument_specs.yml",
    "defaults/main.yml",
    "tasks/main.yml",
    "tasks/preflight.yml",
)
# What a role may lack, and why: all of the plan is a preflight; the account leaves nothing to choose.
LACKS = {"vllm_plan": {"tasks/preflight.yml"}, "vllm_user": {"tasks/preflight.yml", "defaults/main.yml"}}

each_role = pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)


def load(path: Path) -> Any:
    """Return the content of the YAML file `path`; {} for an empty or missing one."""
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def entry_points(role: Path) -> dict[str, dict[str, Any]]:
    """Return the entry points of a role's argument_specs by name."""
    found: dict[str, dict[str, Any]] = load(role / "meta/argument_specs.yml").get("argument_specs", {})
    return found


def walk_options(options: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each option of an argument_spec, and the options inside it, with its path."""
    for name, spec in options.items():
        yield f"{path}.{name}", spec
        yield from walk_options(spec.get("options") or {}, f"{path}.{name}")


def code_of(role: Path) -> Iterator[tuple[Path, str]]:
    """Yield a role's YAML files and templates, without whole-line comments."""
    for path in sorted(role.rglob("*")):
        if path.suffix in {".yml", ".j2"}:
            lines = path.read_text(encoding="utf-8").splitlines()
            yield path, "\n".join(line for line in lines if not line.lstrip().startswith("#"))


def test_there_are_roles() -> None:
    """Else every test below would pass."""
    assert ROLES


@each_role
@pytest.mark.parametrize("name", SKELETON)
def test_role_has_the_skeleton(role: Path, name: str) -> None:
    """Galaxy wants the README; readers want the rest in its place."""
    assert (role / name).is_file() != (name in LACKS.get(role.name, ())), name


@each_role
def test_specified_options_are_the_defaults(role: Path) -> None:
    """An option nobody specified is not validated; a specified one nobody defaults is undefined in a task."""
    defaults = set(load(role / "defaults/main.yml"))
    specified = entry_points(role)["main"].get("options") or {}
    required = {name for name, spec in specified.items() if spec.get("required")}
    assert set(specified) - required == defaults
    assert not required & defaults


@each_role
def test_specs_override_no_merged_key(role: Path) -> None:
    """ansible-core warns of it in every play; put the anchor on `options:` instead."""
    assert "<<:" not in (role / "meta/argument_specs.yml").read_text(encoding="utf-8")


@each_role
def test_options_carry_no_default(role: Path) -> None:
    """Ansible never applies it, so it would only drift from defaults/main.yml."""
    for entry, spec in entry_points(role).items():
        guilty = [path for path, option in walk_options(spec.get("options") or {}, entry) if "default" in option]
        assert guilty == []


@each_role
def test_options_are_described(role: Path) -> None:
    """Descriptions are what `ansible-doc -t role` prints."""
    for entry, spec in entry_points(role).items():
        guilty = [
            path for path, option in walk_options(spec.get("options") or {}, entry) if not option.get("description")
        ]
        assert guilty == []


@each_role
def test_entry_points_are_specified(role: Path) -> None:
    """Ansible validates the options of an entry point only where the specs name it."""
    assert set(entry_points(role)) >= ({"main"} if role.name in LACKS else {"main", "preflight"})


@each_role
def test_variables_carry_the_roles_name(role: Path) -> None:
    """Public `ROLE_x`; `__ROLE_x` is the role's own."""
    for name in load(role / "defaults/main.yml"):
        assert name.startswith(f"{role.name}_"), name
    for path in sorted((role / "vars").glob("*.yml")):
        for name in load(path):
            assert name.startswith((f"{role.name}_", f"__{role.name}_")), f"{path.name}: {name}"


@each_role
def test_readme_names_every_variable(role: Path) -> None:
    """A variable the README leaves out is one nobody finds."""
    text = (role / "README.md").read_text(encoding="utf-8")
    assert [name for name in load(role / "defaults/main.yml") if f"`{name}`" not in text] == []


@each_role
def test_tasks_main_lists_phases_only(role: Path) -> None:
    """A reader opens tasks/main.yml and sees what the role does, in order."""
    for task in load(role / "tasks/main.yml"):
        assert "ansible.builtin.import_tasks" in task, task.get("name")


@each_role
def test_role_has_no_dependencies(role: Path) -> None:
    """Order lives in playbooks/site.yml alone."""
    assert not load(role / "meta/main.yml").get("dependencies")


@each_role
def test_role_reads_no_other_roles_variables(role: Path) -> None:
    """What a role needs is handed to it by the play."""
    others = "|".join(other.name for other in ROLES if other != role)
    pattern = re.compile(rf"(?<![\w.])_*(?:{others})_\w+")
    guilty = [
        f"{path.relative_to(role)}: {match[0]}" for path, text in code_of(role) for match in pattern.finditer(text)
    ]
    assert guilty == []


@each_role
def test_facts_are_not_injected(role: Path) -> None:
    """`ansible_facts['x']` works with injection off; the old names do not."""
    pattern = re.compile(
        r"\bansible_(?!facts\b|managed\b|host\b|check_mode\b|diff_mode\b|play_\w+|run_tags\b|user\b|builtin)\w+"
    )
    guilty = [
        f"{path.relative_to(role)}: {match[0]}" for path, text in code_of(role) for match in pattern.finditer(text)
    ]
    assert guilty == []


@each_role
def test_booleans_are_cast_where_they_are_used(role: Path) -> None:
    """Ansible validates an option's type and leaves the value: from -e or an INI inventory, false is a true string."""
    booleans = [
        name for name, spec in (entry_points(role)["main"].get("options") or {}).items() if spec.get("type") == "bool"
    ]
    pattern = re.compile(rf"\b(?:{'|'.join(booleans)})\b(?!\s*\|\s*bool\b|:)")
    guilty = [
        f"{path.relative_to(role)}: {match[0]}"
        for path, text in code_of(role)
        if booleans and path.relative_to(role).parts[0] in {"tasks", "templates", "vars"}
        for match in pattern.finditer(text)
    ]
    assert guilty == []


@each_role
def test_role_has_no_handlers(role: Path) -> None:
    """A handler is lost with the play that is cut off before it; the modules see for themselves what is to be done."""
    assert not (role / "handlers").exists()

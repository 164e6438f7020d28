# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments of an action plugin, checked by what its module documents: types and defaults are written once."""

from __future__ import annotations

from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.action import ActionBase


def checked_arguments(action: ActionBase, documentation: str) -> dict[str, Any]:
    """Return the arguments of the action's task with their defaults. Raises AnsibleActionFail for unknown and wrong ones.

    :arg documentation: DOCUMENTATION of the module. What may hold a secret is ``raw`` or a mapping there: of these no message
        shows the value.
    """
    options: dict[str, dict[str, Any]] = yaml_load(documentation)["options"]
    spec = {
        name: {key: value for key, value in option.items() if key != "description"} for name, option in options.items()
    }
    task = action._task
    # An empty value of the inventory (None) means the default; of a required option it is told by who reads it.
    optional = {name for name, option in spec.items() if not option.get("required")}
    task.args = {name: value for name, value in task.args.items() if value is not None or name not in optional}
    try:
        _result, arguments = action.validate_argument_spec(spec)
    except AnsibleActionFail as error:
        # It carries the arguments, which Ansible would show beside the message.
        raise AnsibleActionFail(str(error)) from None
    return dict(arguments)

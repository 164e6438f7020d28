#!/usr/bin/python
# Copyright (c) 2026 The gpuops.vllm authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

DOCUMENTATION = r"""
module: claim
short_description: Take a host over, so that of two runs at once the later one wins
version_added: 0.1.0
description:
  - Writes C(/run/vllm-claim.json) with a new random id, whose run it is and since when. C(playbooks/site.yml) does this before it changes a host.
  - The modules that change what is served (M(gpuops.vllm.instances), at every look that it takes, M(gpuops.vllm.engine_link),
    M(gpuops.vllm.secrets_file), M(gpuops.vllm.nginx_config) and M(gpuops.vllm.certificate)) take that id as C(claim). They refuse to go on where
    the host has another one. So two runs at once both end, one of them with an error that names the other, and the host is as the later one wants it.
  - Nobody waits for a claim, so that a run that was killed blocks nothing, and nothing has to be given back. It goes with a reboot; a host
    without a claim lets everybody go on.
  - Check mode writes no claim, and checks none. Neither do plays that hand none to the modules.
notes:
  - Claim and modules take the same lock (C(/run/vllm-instances.lock)), so that a claim comes before a module looks at it or after the module has done
    what it does; it waits for that, seconds for most, and minutes while a certificate is ordered. All that the later run does comes after its
    claim, so what the earlier one did before is compared and mended by it.
  - Not under the claim are the steps before these modules, in the roles for account, engine, weights and launcher. What they leave is compared by the
    next run.
  - It changes nothing that anybody asked for, and never counts as changed.
author:
  - The gpuops.vllm authors (@gpuops)
attributes:
  check_mode:
    description: Nothing is written, and RV(id) is empty.
    support: full
  diff_mode:
    description: There is nothing to compare.
    support: none
options:
  who:
    description: Whose run it is. The action plugin of the same name fills in user and control host.
    type: str
    default: somebody
"""

EXAMPLES = r"""
- name: Serve the models
  hosts: vllm_servers
  become: true
  module_defaults:
    group/gpuops.vllm.claimed:
      claim: "{{ vllm_claim.id }}"
  pre_tasks:
    - name: Take the hosts over
      gpuops.vllm.claim:
      register: vllm_claim
  roles:
    - gpuops.vllm.vllm_service
"""

RETURN = r"""
id:
  description: The claim, for the modules' option C(claim); empty in check mode.
  returned: success
  type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpuops.vllm.plugins.module_utils import _claim
from ansible_collections.gpuops.vllm.plugins.module_utils._files import disk_trouble


def main() -> None:
    module = AnsibleModule(
        argument_spec={"who": {"type": "str", "default": "somebody"}},
        supports_check_mode=True,
    )
    os.umask(0o022)
    if module.check_mode:
        module.exit_json(changed=False, id="")
    try:
        with _claim.turn():
            claim = _claim.take(module.params["who"])
    except _claim.RefusedError as error:
        module.fail_json(msg=str(error))
    except OSError as error:
        module.fail_json(msg=disk_trouble(error))
    module.exit_json(changed=False, id=claim)


if __name__ == "__main__":
    main()

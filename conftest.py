"""Make `ansible_collections.gpuops.vllm` importable under plain pytest, wherever the checkout lies.

ansible-core's own import hook would need the collection installed. The committed link
`.collections/ansible_collections/gpuops/vllm` points back to this folder, so one entry on `sys.path` is enough.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hypothesis import settings
from hypothesis.configuration import set_hypothesis_home_dir

COLLECTIONS_PATH = str(Path(__file__).resolve().parent / ".collections")

if COLLECTIONS_PATH not in sys.path:
    sys.path.insert(0, COLLECTIONS_PATH)

# Nothing is kept between runs, and a busy machine is no failure: the same code gives the same verdict.
set_hypothesis_home_dir(Path(__file__).resolve().parent / ".pytest_cache/hypothesis")
settings.register_profile("repo", database=None, deadline=None, derandomize=True)
settings.load_profile("repo")

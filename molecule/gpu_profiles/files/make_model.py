"""Make model folders without weights: a safetensors header that promises them, and a hole in their place.

Standard input: a JSON list of `path`, `config` (config.json) and `weights_bytes`.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path


def main() -> None:
    """Make each folder of the list."""
    for model in json.load(sys.stdin):
        folder, size = Path(model["path"]), int(model["weights_bytes"])
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(model["config"]))
        header = json.dumps({"weights": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
        with (folder / "model.safetensors").open("wb") as shard:
            shard.write(struct.pack("<Q", len(header)) + header)
            shard.truncate(8 + len(header) + size)


if __name__ == "__main__":
    main()

"""A stand-in for a model worker: says as what it was started, and ends."""

from __future__ import annotations

import json
import os
import sys

print(
    json.dumps(
        {
            "argv": sys.argv[1:],
            "name": __name__,
            "ours": [n for n in sys.modules if n.partition(".")[0] in ("arbiter", "capture", "common", "workers")],
            "torch": "torch" in sys.modules,
            "input": sys.stdin.read(),
            "pid": os.getpid(),
        }
    ),
    flush=True,
)
sys.exit(7)

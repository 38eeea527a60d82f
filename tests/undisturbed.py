"""What the recording comes to without any disturbance, found out once for all test files that run side by side."""

from __future__ import annotations

import fcntl
import os
import pickle
import tempfile
from pathlib import Path

from tests.faults.system import SPEAKERS, TARGETS
from tests.system import RECORDING, Undisturbed


def undisturbed_recording(base: Path) -> Undisturbed:
    """`base` is pytest's folder of this process; whoever comes first plays the recording, the others wait for it."""
    together = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    kept = together / "undisturbed"
    with (together / "undisturbed.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            with tempfile.TemporaryDirectory(prefix="sw-") as folder:
                made = Undisturbed(Path(folder), clip=RECORDING, speakers=SPEAKERS, targets=TARGETS)
            kept.with_suffix(".new").write_bytes(pickle.dumps(made))
            kept.with_suffix(".new").rename(kept)
        found = pickle.loads(kept.read_bytes())
    assert isinstance(found, Undisturbed)
    return found

"""Our dynamic time warping finds whisper's path, ties included, and a transcriber has no compiler in its process."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from typing import Any

import numpy as np
import pytest

from tests.conftest import ROOT, clean_environment
from workers._torch import whisper_without_compiler
from workers.alignment import dtw

IMPORTED = """
import sys
from pathlib import Path
from workers._torch import set_up, whisper_without_compiler
set_up(1, Path("unused"))
whisper = whisper_without_compiler()
assert whisper.timing.dtw_cpu is sys.modules["workers.alignment"].dtw
print(*sorted({n.partition(".")[0] for n in sys.modules} & {"numba", "llvmlite"}))
"""


@pytest.fixture(scope="module")
def whispers() -> Any:
    """Whisper's own function, not compiled: a minute would go into that."""
    whisper_without_compiler()
    spec = importlib.util.find_spec("whisper.timing")
    assert spec and spec.loader
    plain = types.ModuleType("numba")
    vars(plain)["jit"] = lambda **_: lambda function: function
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "numba", plain)
        spec.loader.exec_module(module)
    assert module.dtw_cpu is not dtw
    return module.dtw_cpu


@pytest.mark.pure
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 3), (13, 40), (60, 400)])
@pytest.mark.parametrize("levels", [2, 3, 4096])
def test_the_path_is_whispers(shape: tuple[int, int], levels: int, whispers: Any) -> None:
    """With few levels ways tie all the time. Sums are exact: compiled, whisper's are in float64, else in float32."""
    rng = np.random.default_rng(levels)
    for _ in range(3):
        x = (rng.integers(0, levels, shape) - levels // 2) / 1024
        assert np.array_equal(dtw(x), whispers(x))


@pytest.mark.pure
def test_a_path_goes_from_the_first_to_the_last_in_single_steps() -> None:
    path = dtw(np.random.default_rng(7).standard_normal((20, 90)))
    steps = np.diff(path, axis=1)
    assert path[:, 0].tolist() == [0, 0] and path[:, -1].tolist() == [19, 89]
    assert {tuple(step) for step in steps.T.tolist()} <= {(0, 1), (1, 0), (1, 1)}


@pytest.mark.processes
def test_a_transcriber_imports_no_compiler() -> None:
    argv = [sys.executable, "-c", IMPORTED]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment(), timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""

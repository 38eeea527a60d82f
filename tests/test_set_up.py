"""How torch is set up in every model worker: what must be so in the process that did it, and nowhere else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT, clean_environment


def said(code: str, **env: str) -> list[str]:
    """What a new process prints that has set torch up, word by word."""
    argv = [sys.executable, "-c", f"from pathlib import Path\nfrom workers._torch import set_up\n{code}"]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=clean_environment() | env, check=True)
    return done.stdout.split()


@pytest.mark.processes
@pytest.mark.parametrize("given", ["", "FASTEST_FIRST"])
def test_cards_are_counted_by_bus(given: str) -> None:
    """Before CUDA starts, which reads it once."""
    code = "import os\nset_up(1, Path('unused'))\nprint(os.environ['CUDA_DEVICE_ORDER'])"
    assert said(code, **({"CUDA_DEVICE_ORDER": given} if given else {})) == ["PCI_BUS_ID"]


@pytest.mark.processes
def test_kernels_are_deterministic_but_new_memory_is_as_it_comes() -> None:
    """Filling it takes longer than a reload; and all that without the compiler, which takes seconds to import."""
    code = """
torch = set_up(1, Path('unused'))
import sys
print(torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
print(torch._C._get_deterministic_fill_uninitialized_memory(), bool(torch.empty(2**22).isnan().all()))
print('torch._dynamo' in sys.modules)
"""
    assert said(code) == ["True", "True", "False", "False", "False"]

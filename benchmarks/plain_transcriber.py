"""The peer of `drain.py`: one plain script with the same Silero and openai-whisper calls, and nothing of ours around.

`plain_transcriber.py PCM CUTS MODEL_DIR VAD_DIR THREADS OUT`: CUTS is JSON [{"span": [a, b], "prompt": [tokens]}].
Writes {"cpu_s": after model load, "texts": [...]}. It hears every frame with Silero's own `model(x, 16000)`, decodes
each cut in a full 30-s window, and times words with whisper's `add_word_timestamps`, as whisper's own `transcribe`
does. `--share-encoder` spares the second encoder run of the alignment, as our transcriber does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

share = "--share-encoder" in sys.argv
pcm_path, cuts_path, model_dir, vad_dir, threads, out = [a for a in sys.argv[1:] if not a.startswith("--")]
os.environ["OMP_NUM_THREADS"] = os.environ["NUMBA_NUM_THREADS"] = threads

import numpy as np  # noqa: E402
import torch  # noqa: E402
import whisper  # noqa: E402
import whisper.timing  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

torch.set_num_threads(int(threads))
torch.set_grad_enabled(False)
about = json.loads((Path(model_dir) / "model.json").read_text())
model = whisper.model.Whisper(whisper.ModelDimensions(**about["dims"]))
model.load_state_dict(load_file(str(Path(model_dir) / about["file"])))
model.set_alignment_heads(whisper._ALIGNMENT_HEADS[about["name"]])
model.eval()
vad = torch.jit.load(str(Path(vad_dir) / "silero_vad.jit")).eval()
tokenizer = whisper.tokenizer.get_tokenizer(model.is_multilingual, language="en", task="transcribe")
whisper.timing.dtw_cpu.enable_caching()
whisper.timing.backtrace.enable_caching()


class Shared:
    """The model, with the encoder's output at hand: alignment then runs the decoder only."""

    def __init__(self, features: torch.Tensor) -> None:
        self.features = features

    def __getattr__(self, name: str) -> object:
        return getattr(model, name)

    def __call__(self, mel: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        return model.decoder(tokens, self.features[None])


began = time.process_time()
audio = np.fromfile(pcm_path, "<i2").astype(np.float32) / 32768.0
for k in range(len(audio) // 512):
    vad(torch.from_numpy(audio[k * 512 : (k + 1) * 512]), 16000).item()
texts = []
for cut in json.loads(Path(cuts_path).read_text()):
    first, end = cut["span"]
    mel = whisper.log_mel_spectrogram(audio[first:end], model.dims.n_mels, padding=whisper.audio.N_SAMPLES)
    frames = mel.shape[-1] - whisper.audio.N_FRAMES
    mel = whisper.pad_or_trim(mel, whisper.audio.N_FRAMES)
    heard = model.embed_audio(mel[None])[0] if share else mel
    tries = [(0.0, cut["prompt"]), (0.0, cut["first_prompt"])] + [
        (t, cut["first_prompt"]) for t in (0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    for temperature, prompt in tries:
        torch.manual_seed(first)
        options = whisper.DecodingOptions(
            language="en", temperature=temperature, prompt=prompt, without_timestamps=True, fp16=False
        )
        result = model.decode(heard, options)
        unsure = result.avg_logprob < -1.0
        if (result.no_speech_prob > 0.6 and unsure) or not (unsure or result.compression_ratio > 2.4):
            break
    segment = {"seek": 0, "start": 0.0, "end": frames / 100, "tokens": result.tokens}
    peer = Shared(heard) if share else model
    whisper.timing.add_word_timestamps(
        segments=[segment], model=peer, tokenizer=tokenizer, mel=mel, num_frames=frames, last_speech_timestamp=0.0
    )
    texts.append(result.text.strip())
Path(out).write_text(json.dumps({"cpu_s": time.process_time() - began, "texts": texts}))

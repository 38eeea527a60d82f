"""Whisper on one utterance, and on several at once: samples in, text with word times and a reason against it out.

Alone, an utterance is decoded in a window cropped to it, and where that raises a doubt in the whole window, with the
thresholds and fallbacks of Whisper's paper. At once, neighbours are packed into windows and the windows are one batch:
greedy, with one prompt for all. Whatever raises a doubt there is decoded alone.
No stream, no position and no lease here; the pieces of a generator are what can be interrupted.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from common import messages as m
from common.settings import TranscriberSettings
from workers import cropped
from workers.captions import echoes, looping, loud, owners, packed, repeats, snapped
from workers.vad import Floats

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # fallback of Radford et al. 2022, section 4.5
PROMPT_TOKENS = 100
PROMPT_TEMPERATURE = 0.5  # text decoded hotter than this is no context for what follows
EDGE_SAMPLES = m.SAMPLE_RATE // 5  # words may reach this far beyond what the VAD calls voice
WINDOW_SAMPLES = 28 * m.SAMPLE_RATE  # neighbours packed together; a window has 30 s
T = TypeVar("T")
Pieces = Generator[None, None, T]


class Sound(NamedTuple):
    """One utterance: s16le of `span`, of which `voiced` is speech to the VAD."""

    pcm: bytes
    span: m.Span
    voiced: m.Span


class Decoded(msgspec.Struct, frozen=True, kw_only=True):
    """What the decoder made of an utterance; `reason` says why it must not be shown."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    language: str = ""
    words: tuple[m.Word, ...] = ()
    temperature: float = 0.0
    reason: str = ""

    def prompt_after(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """The text before what follows."""
        return (before + self.tokens)[-PROMPT_TOKENS:] if self.temperature < PROMPT_TEMPERATURE else ()


class Spectrum(NamedTuple):
    """A window as the encoder takes it."""

    mel: Any  # (n_mels, 3000) float32
    frames: int  # of them, that hold sound


class Decoder:
    """One model; `half`: in float16, on a card."""

    def __init__(self, settings: TranscriberSettings, torch: Any, whisper: Any, model: Any, half: bool) -> None:
        self.s, self.torch, self.whisper, self.model, self.half = settings, torch, whisper, model, half
        self._encoder = cropped.Encoder(torch, model)

    # Memory

    def working_bytes(self, windows: int) -> int:
        """Of so many windows at once: one in the encoder, caches of the decoder, and the attention that word times of
        one are made from."""
        d, size = self.model.dims, 2 if self.half else 4
        encoder = d.n_audio_ctx * (12 * d.n_audio_state + d.n_audio_head * d.n_audio_ctx) * size
        caches = 2 * d.n_text_layer * (d.n_text_ctx + d.n_audio_ctx) * d.n_text_state * size
        features = d.n_audio_ctx * d.n_audio_state * size
        aligned = d.n_text_layer * d.n_text_head * d.n_text_ctx * d.n_audio_ctx * size
        begun = windows * self._longest_prompt() * (4 + size)  # the prompt's logits, and once more in float32
        logits = max(d.n_text_ctx * 4, begun) * d.n_vocab
        return int(encoder + windows * caches + (windows - 1) * features + aligned + logits)

    def _longest_prompt(self) -> int:
        return len(self.first_prompt()) + PROMPT_TOKENS + 8  # marks of the language, the task and such

    def rehearse(self, windows: int) -> Iterator[None]:
        """Whole windows, decoded as far as the decoder goes, with word times."""
        w, d = self.whisper, self.model.dims
        mel = self.torch.zeros(d.n_mels, w.audio.N_FRAMES)
        features = self.model.embed_audio(self.moved(mel)[None])[0]
        yield
        tokenizer = self.tokenizer(self.language() or "en")
        tokens = tokenizer.encode(" and so on" * 80)[: d.n_text_ctx // 2 - 8]
        result = w.DecodingResult(audio_features=features, language=tokenizer.language, tokens=tokens)
        batch = self.torch.stack([features] * windows)
        caches, hooks = self.model.install_kv_cache_hooks()
        try:
            for part in (tokens[: self._longest_prompt()], *([token] for token in tokens)):
                last = self.torch.tensor([part] * windows).to(features.device)
                self.model.decoder(last, batch, kv_cache=caches).argmax()
        finally:
            for hook in hooks:
                hook.remove()
        caches.clear()
        yield
        self._timed(Spectrum(mel, w.audio.N_FRAMES), features, result)

    # One utterance

    def hear(self, sound: Sound, prompt: tuple[int, ...]) -> Pieces[Decoded]:
        """Decode one utterance; never raises on odd audio, always says what it made of it."""
        audio = floats(sound.pcm)
        if self._too_quiet(audio):
            return Decoded(reason="too quiet")
        spectrum = self._spectrum(audio)
        result = yield from self._quick(spectrum, prompt)
        if result is None:
            yield
            features = self.model.embed_audio(self.moved(spectrum.mel)[None])[0]
            yield
            result = yield from self._decode(features, sound.span[0], prompt)
        text = result.text.strip()
        reason = self._why_not(result, text)
        if reason:
            return Decoded(text=text, language=result.language, reason=reason)
        yield
        words = placed(self._timed(spectrum, result.audio_features, result), sound, audio)
        tokens = tuple(t for t in result.tokens if t < self.tokenizer(result.language).eot)
        return Decoded(
            text=text, tokens=tokens, language=result.language, words=words, temperature=float(result.temperature)
        )

    def _quick(self, spectrum: Spectrum, prompt: tuple[int, ...]) -> Pieces[Any]:
        """Greedy, once, in a window cropped to the speech. None: doubtful, so it must be heard in the whole window."""
        if self.s.whole_window:
            return None
        features = self._encoded(spectrum)
        yield
        (result,) = self._greedy(features[None], spectrum.frames, prompt)
        return None if result is None or self._doubtful(result, prompt) else result

    def _decode(self, features: Floats, first: int, prompt: tuple[int, ...]) -> Pieces[Any]:
        """Greedy with the prompt, then without it (it is what loops feed on), then warmer and warmer.

        Where nobody speaks, the decoder is sure of what the prompt tells it. So what repeats the text before counts
        only when it is heard without that text, and what may be no speech only when it is heard without any prompt.
        """
        lead = self.first_prompt()
        tries = [(TEMPERATURES[0], lead + prompt)] + [(t, lead) for t in (TEMPERATURES if prompt else TEMPERATURES[1:])]
        result = None
        while tries:
            if result:
                yield  # each try may take as long as the decoder goes
            (temperature, context), *tries = tries
            self.torch.manual_seed(first)  # sampling is a function of the place in the stream
            result = self.model.decode(features, self._options(temperature, context))
            quiet = result.no_speech_prob > self.s.no_speech_threshold
            unsure = result.avg_logprob < self.s.logprob_threshold
            if quiet and unsure:
                break
            if context and (quiet or echoes(result.text, self.s.first_prompt)):
                tries = [(t, ()) for t in TEMPERATURES]  # what it says again without any prompt was really said
                continue
            if len(context) > len(lead) and self._repeats(result, prompt):
                continue
            if not (unsure or result.compression_ratio > self.s.compression_ratio_threshold):
                break
        return result

    # Several

    @property
    def packs(self) -> bool:
        """Not where the language of each is to be found out: a window has one."""
        return self.language() is not None

    def windows(self, sounds: Sequence[Sound]) -> list[range]:
        """Which of the utterances are packed into each window."""
        return packed([s.span[1] - s.span[0] for s in sounds], WINDOW_SAMPLES if self.packs else 0)

    def hear_all(self, sounds: Sequence[Sound], prompt: tuple[int, ...]) -> Pieces[list[Decoded | None]]:
        """Decode several utterances as one batch. None: there is a doubt about it, it must be heard alone."""
        done: list[Decoded | None] = [None] * len(sounds)
        audio = [floats(s.pcm) for s in sounds]
        windows = self.windows(sounds)
        spectra, features = list[Spectrum](), list[Any]()
        for window in windows:
            spectra.append(self._spectrum(np.concatenate([audio[i] for i in window])))
            features.append(self._encoded(spectra[-1]))
            yield
        longest = max(s.frames for s in spectra)
        results = self._greedy(self.torch.stack(features), longest, prompt)
        for window, spectrum, heard, result in zip(windows, spectra, features, results, strict=True):
            if result is None or self._doubtful(result, prompt):
                continue
            yield
            timed = self._timed(spectrum, heard, result)
            for i, share in self._shares(timed, [sounds[i] for i in window], window):
                text = "".join(word["word"] for word in share).strip()
                if not self._too_quiet(audio[i]) and text.strip(" .,!?-…"):
                    tokens = tuple(self.tokenizer(result.language).encode(" " + text))
                    words = placed(share, sounds[i], audio[i])
                    done[i] = Decoded(text=text, tokens=tokens, language=result.language, words=words)
        return done

    def _doubtful(self, result: Any, prompt: tuple[int, ...]) -> bool:
        silent, unsure = self.s.no_speech_threshold, self.s.logprob_threshold
        if not self.s.whole_window:
            silent, unsure = silent * cropped.SILENT_AT, unsure * cropped.UNSURE_AT
        quiet = result.no_speech_prob > silent or result.avg_logprob < unsure
        echo = echoes(result.text, self.s.first_prompt) or (bool(prompt) and self._repeats(result, prompt))
        return quiet or echo or bool(self._why_not(result, result.text.strip()))

    @staticmethod
    def _shares(timed: list[dict[str, Any]], sounds: Sequence[Sound], window: range) -> Iterator[tuple[int, list[Any]]]:
        """For each utterance of a window: its number, and its words in seconds from its own start."""
        starts = np.cumsum([0, *(s.span[1] - s.span[0] for s in sounds)]) / m.SAMPLE_RATE
        voices = [
            (at + (s.voiced[0] - s.span[0]) / m.SAMPLE_RATE, at + (s.voiced[1] - s.span[0]) / m.SAMPLE_RATE)
            for at, s in zip(starts, sounds, strict=False)
        ]
        owner = owners([(w["start"], w["end"]) for w in timed], voices)
        for k, at in enumerate(starts[:-1]):
            mine = [w for w, whose in zip(timed, owner, strict=True) if whose == k]
            yield window[k], [w | {"start": w["start"] - at, "end": w["end"] - at} for w in mine]

    # What both are made of

    def _too_quiet(self, audio: Floats) -> bool:
        rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if len(audio) else 0.0
        return rms <= 10 ** (self.s.level_gate_dbfs / 20)

    def _spectrum(self, audio: Floats) -> Spectrum:
        w = self.whisper
        mel = w.log_mel_spectrogram(self.torch.from_numpy(audio), self.model.dims.n_mels, padding=w.audio.N_SAMPLES)
        return Spectrum(w.pad_or_trim(mel, w.audio.N_FRAMES), mel.shape[-1] - w.audio.N_FRAMES)

    def moved(self, mel: Any) -> Any:
        """A spectrogram where the model is, in its precision."""
        return mel.to(self.model.device, self.torch.float16 if self.half else self.torch.float32)

    def _encoded(self, spectrum: Spectrum) -> Any:
        """(places, state)"""
        mel = self.moved(spectrum.mel)
        return self.model.embed_audio(mel[None])[0] if self.s.whole_window else self._encoder(mel, spectrum.frames)

    def _greedy(self, features: Any, frames: int, prompt: tuple[int, ...]) -> Sequence[Any | None]:
        """features (windows, places, state), so many frames of speech in the longest."""
        options = self._options(TEMPERATURES[0], self.first_prompt() + prompt)
        return cropped.decode(self.whisper, self.model, features, options, frames)

    def _options(self, temperature: float, context: tuple[int, ...]) -> Any:
        return self.whisper.DecodingOptions(
            language=self.language(),
            temperature=temperature,
            prompt=list(context) or None,
            without_timestamps=True,
            fp16=self.half,
        )

    def _repeats(self, result: Any, prompt: tuple[int, ...]) -> bool:
        return repeats(result.text, self.tokenizer(result.language).decode(prompt))

    def first_prompt(self) -> tuple[int, ...]:
        """Tokens that make the decoder expect running speech; without any context it mishears short utterances."""
        if not self.s.first_prompt or (self.model.is_multilingual and self.s.language != "en"):
            return ()
        return tuple(self.tokenizer("en").encode(" " + self.s.first_prompt.strip()))

    def language(self) -> str | None:
        if self.s.language != "auto":
            return self.s.language
        return None if self.model.is_multilingual else "en"

    def tokenizer(self, language: str) -> Any:
        return self.whisper.tokenizer.get_tokenizer(
            self.model.is_multilingual, num_languages=self.model.num_languages, language=language, task="transcribe"
        )

    def _why_not(self, result: Any, text: str) -> str:
        """Why a decoded text must not become a caption; empty: it may."""
        if not text.strip(" .,!?-…"):
            return "no words"
        if result.no_speech_prob > self.s.no_speech_threshold and result.avg_logprob < self.s.logprob_threshold:
            return "no speech"
        if result.compression_ratio > self.s.compression_ratio_threshold or looping(text):
            return "loop"
        if result.avg_logprob < self.s.logprob_threshold:
            return "unsure"
        return ""

    def _timed(self, spectrum: Spectrum, features: Any, result: Any) -> list[dict[str, Any]]:
        """Words with seconds from the window's start, by cross-attention alignment."""
        segment: dict[str, Any] = {"seek": 0, "start": 0.0, "end": spectrum.frames / 100, "tokens": result.tokens}
        self.whisper.timing.add_word_timestamps(
            segments=[segment],
            model=Heard(self.model, features),
            tokenizer=self.tokenizer(result.language),
            mel=spectrum.mel,
            num_frames=spectrum.frames,
            last_speech_timestamp=0.0,
        )
        found: list[dict[str, Any]] = segment["words"]
        return found


class Heard:
    """A model that has heard this audio: whisper's alignment asks for a full forward, but the encoder ran before."""

    def __init__(self, model: Any, features: Any) -> None:
        self._model, self._features = model, features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, mel: Any, tokens: Any) -> Any:
        return self._model.decoder(tokens, self._features[None])


def floats(pcm: bytes) -> Floats:
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32768.0


def placed(timed: list[dict[str, Any]], sound: Sound, audio: Floats) -> tuple[m.Word, ...]:
    """Words in seconds from the utterance's start as samples of the stream: monotone, within the voice."""
    span, voiced = sound.span, sound.voiced
    low, high = max(span[0], voiced[0] - EDGE_SAMPLES), min(span[1], voiced[1] + EDGE_SAMPLES)
    words, at = [], low
    for w in timed:
        start = min(max(span[0] + round(w["start"] * m.SAMPLE_RATE), at), high)
        end = min(max(span[0] + round(w["end"] * m.SAMPLE_RATE), start), high)
        words.append(m.Word(text=w["word"], span=(start, end), p=round(float(w["probability"]), 4)))
        at = end
    return snapped(tuple(words), loud(audio), span[0], high)

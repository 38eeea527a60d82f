"""Whisper on one utterance, and on several at once: samples in, text with word times and a reason against it out.

Alone, an utterance is decoded in a window cropped to it, and where that raises a doubt in the whole window, with the
thresholds and fallbacks of Whisper's paper. At once, neighbours are packed into windows and the windows are one batch:
greedy, with one prompt and one language for all. Whatever raises a doubt there is decoded alone. Where the language is
to be found out, the encoder's output is asked for it before the text is.
No stream, no position and no lease here; the pieces of a generator are what can be interrupted.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec
import numpy as np

from common import messages as m
from common.settings import TranscriberSettings
from workers import cropped, glossary
from workers.captions import echoes, looping, packed
from workers.encoder import PLACE
from workers.language import BETTER, Belief
from workers.prompts import MARKS, MOST, PROMPT_TOKENS, WHOLE, Prompts, Told, Try
from workers.silence import KeptSilence
from workers.text_decoder import logits, states, task
from workers.vad import Floats
from workers.word_times import placed, shares, timed

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # fallback of Radford et al. 2022, section 4.5
PROMPT_TEMPERATURE = 0.5  # text decoded hotter than this is no context for what follows
SILENT_PLACES = 200  # 4 s: without silence behind it hardly any language is recognised
WINDOW_SAMPLES = 28 * m.SAMPLE_RATE  # neighbours packed together; a window has 30 s
T = TypeVar("T")
Pieces = Generator[None, None, T]


class Sound(NamedTuple):
    """One utterance: s16le of `span`, of which `voiced` is speech to the VAD."""

    pcm: bytes
    span: m.Span
    voiced: m.Span

    @property
    def seconds(self) -> float:
        """Of speech."""
        return (self.voiced[1] - self.voiced[0]) / m.SAMPLE_RATE


class Decoded(msgspec.Struct, frozen=True, kw_only=True):
    """What the decoder made of an utterance; `reason` says why it must not be shown."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    language: str = ""
    words: tuple[m.Word, ...] = ()
    temperature: float = 0.0
    reason: str = ""
    belief: Belief = Belief()  # about the stream's language, after this

    def prompt_after(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """The text before what follows."""
        return (before + self.tokens)[-PROMPT_TOKENS:] if self.temperature < PROMPT_TEMPERATURE else ()


class Spectrum(NamedTuple):
    """A window as the encoder takes it."""

    mel: Any  # (n_mels, 3000) float32
    frames: int  # of them, that hold sound


class Decoder:
    """One model; `half`: in float16, on a card."""

    def __init__(
        self,
        settings: TranscriberSettings,
        torch: Any,
        whisper: Any,
        model: Any,
        half: bool,
        silence: KeptSilence | None = None,
    ) -> None:
        self.s, self.torch, self.whisper, self.model, self.half = settings, torch, whisper, model, half
        self.prompts = Prompts(settings, whisper, model)
        self.encoder = cropped.Encoder(torch, model, silence)
        self.whole = cropped.whole(settings)

    # Memory

    def working_bytes(self, windows: int) -> int:
        """Of so many windows at once: one in the encoder, caches of the decoder, and the attention and probabilities
        that word times of one are made from."""
        d, size = self.model.dims, 2 if self.half else 4
        encoder = d.n_audio_ctx * (12 * d.n_audio_state + d.n_audio_head * d.n_audio_ctx) * size
        caches = 2 * d.n_text_layer * (d.n_text_ctx + d.n_audio_ctx) * d.n_text_state * size
        features = d.n_audio_ctx * d.n_audio_state * size
        aligned = d.n_text_layer * d.n_text_head * d.n_text_ctx * d.n_audio_ctx * size
        read = max(d.n_text_ctx * 4, windows * 2 * (4 + size)) * d.n_vocab  # a text's; two places of each prompt
        return int(encoder + windows * caches + (windows - 1) * features + aligned + read)

    def rehearse(self, windows: int) -> Iterator[None]:
        """Whole windows, decoded as far as the decoder goes, with word times."""
        w, d = self.whisper, self.model.dims
        mel = self.torch.zeros(d.n_mels, w.audio.N_FRAMES)
        features = self.model.embed_audio(self.moved(mel)[None])[0]
        yield
        tokenizer = self.prompts.tokenizer("en")
        tokens = tokenizer.encode(" and so on" * 80)[: d.n_text_ctx // 2 - 8]
        result = w.DecodingResult(audio_features=features, language=tokenizer.language, tokens=tokens)
        batch = self.torch.stack([features] * windows)
        caches, hooks = self.model.install_kv_cache_hooks()
        try:
            for part in (tokens[: MOST + MARKS], *([token] for token in tokens)):
                given = self.torch.tensor([part] * windows).to(features.device)
                logits(self.model, states(self.model, given, batch, caches)[:, -2:]).argmax()
        finally:
            for hook in hooks:
                hook.remove()
        caches.clear()
        yield
        self._timed(Spectrum(mel, w.audio.N_FRAMES), features, result)

    # One utterance

    def hear(self, sound: Sound, told: Told) -> Pieces[Decoded]:
        """Decode one utterance; never raises on odd audio, always says what it made of it."""
        audio = floats(sound.pcm)
        if self._too_quiet(audio):
            return Decoded(reason="too quiet")
        spectrum = self._spectrum(audio)
        found = None if self.whole else (yield from self._quick(spectrum, sound, told))
        if found is None:
            features = self.model.embed_audio(self.moved(spectrum.mel)[None])[0]
            yield
            if told.language:
                found = (yield from self._decode(features, sound.span[0], told)), told.belief
            else:
                found = yield from self._decode_in_its_language(features, sound, told)
        result, belief = found
        text = result.text.strip()
        reason = self._why_not(result, text)
        if reason:
            return Decoded(text=text, language=result.language, reason=reason)
        yield
        words = placed(self._timed(spectrum, result.audio_features, result), sound.span, sound.voiced, audio)
        tokens = tuple(t for t in result.tokens if t < self.prompts.tokenizer(result.language).eot)
        return Decoded(
            text=text,
            tokens=tokens,
            language=result.language,
            words=words,
            temperature=float(result.temperature),
            belief=belief,
        )

    def _quick(self, spectrum: Spectrum, sound: Sound, told: Told) -> Pieces[tuple[Any, Belief] | None]:
        """Greedy, once, in a window cropped to the speech. None: there is a doubt about its words or its language, and
        it must be heard in the whole window."""
        features = self._encoded(spectrum)
        yield
        probs, belief, language = dict[str, float](), told.belief, told.language
        if not language:
            probs, belief = self._believed(features, sound, told)
            language = belief.best
            yield
        same = told.within(language)
        (result,) = self._greedy(features[None], spectrum.frames, language, same)
        yield
        if result is None or self._doubtful(result, same) or glossary.mostly(result.text, told.terms):
            return None
        if probs:
            if belief.rival(probs, result.avg_logprob, False):
                return None
            belief = belief.wrote(result.avg_logprob)
        return result, belief

    def _believed(self, features: Floats, sound: Sound, told: Told) -> tuple[dict[str, float], Belief]:
        """How probable each language is in this utterance, and what to believe after it."""
        probs = self.languages(next(self.parts(features, [sound.span])))
        return probs, (told.belief.paused() if told.paused else told.belief).heard(probs, sound.seconds)

    def _decode_in_its_language(self, features: Floats, sound: Sound, told: Told) -> Pieces[tuple[Any, Belief]]:
        """In the language that the belief holds after this utterance; in a rival too where there is reason to doubt."""
        probs, belief = self._believed(features, sound, told)
        yield
        result = yield from self._decode(features, sound.span[0], told.within(belief.best))
        failed = bool(self._why_not(result, result.text.strip()))
        if rival := belief.rival(probs, result.avg_logprob, failed):
            yield
            other = yield from self._decode(features, sound.span[0], told.within(rival))
            better = failed or other.avg_logprob > result.avg_logprob + BETTER
            if better and not self._why_not(other, other.text.strip()):
                return other, belief.proved(rival).wrote(other.avg_logprob)
        return result, belief.wrote(result.avg_logprob)

    def _decode(self, features: Floats, first: int, told: Told) -> Pieces[Any]:
        """Greedy with the prompt, then without the text before (it is what loops feed on), then warmer and warmer.

        Where nobody speaks, the decoder is sure of what the prompt tells it. So what repeats the text before counts
        only when it is heard without that text, what may be no speech only when it is heard without any prompt, and
        what is mostly glossary only when something like it is heard without the glossary.
        """
        warmer = TEMPERATURES if told.before else TEMPERATURES[1:]
        tries = [WHOLE, *(Try(t, glossary=True, lead=True) for t in warmer)]
        result = named = None
        while tries:
            if result:
                yield  # each try may take as long as the decoder goes
            this, *tries = tries
            context = self.prompts.tokens(told, this)
            self.torch.manual_seed(first)  # sampling is a function of the place in the stream
            options = self._options(this.temperature, told.language, context)
            (result,) = task(self.whisper, self.model, options).run(features[None])
            quiet = result.no_speech_prob > self.s.no_speech_threshold
            unsure = result.avg_logprob < self.s.logprob_threshold
            if quiet and unsure:
                break
            if context and (quiet or echoes(result.text, self.s.first_prompt)):
                tries = [Try(t) for t in TEMPERATURES]  # what it says again without any prompt was really said
                continue
            if this.glossary and glossary.mostly(result.text, told.terms):
                named = named or result
                tries = [t._replace(glossary=False) for t in (this, *tries)]
                continue
            if this.before and self.prompts.repeats(result.text, told):
                continue
            if not (unsure or result.compression_ratio > self.s.compression_ratio_threshold):
                break
        assert result
        if named and not quiet and not self._why_not(result, result.text.strip()):
            return named if glossary.alike(named.text, result.text) else result
        return result

    def languages(self, features: Any) -> dict[str, float]:
        """How probable each language is in what was encoded, (places, state), which must end with silence."""
        tokenizer = self.prompts.tokenizer("en")
        begin = self.torch.tensor([[tokenizer.sot]], device=features.device)
        with self.torch.no_grad():
            logits = self.model.decoder(begin, features[None])[0, 0, list(tokenizer.all_language_tokens)]
        return dict(zip(tokenizer.all_language_codes, logits.float().softmax(-1).tolist(), strict=True))

    def parts(self, features: Any, spans: Sequence[m.Span]) -> Iterator[Any]:
        """What was encoded of each utterance of a window, and the silence behind the last: (places, state)."""
        ends = np.cumsum([0, *(span[1] - span[0] for span in spans)]) // PLACE
        silence = features[ends[-1] : ends[-1] + SILENT_PLACES]
        for start, end in itertools.pairwise(ends):
            yield self.torch.cat([features[start:end], silence])

    # Several

    def windows(self, sounds: Sequence[Sound]) -> list[range]:
        """Which of the utterances are packed into each window."""
        return packed([s.span[1] - s.span[0] for s in sounds], WINDOW_SAMPLES)

    def hear_all(self, sounds: Sequence[Sound], told: Told) -> Pieces[list[Decoded | None]]:
        """Decode several utterances as one batch. None: there is a doubt about it, it must be heard alone.

        Where the language is to be found out it must be settled: who speaks another one in between is heard alone.
        """
        done: list[Decoded | None] = [None] * len(sounds)
        audio = [floats(s.pcm) for s in sounds]
        windows = self.windows(sounds)
        spectra, features = list[Spectrum](), list[Any]()
        for window in windows:
            spectra.append(self._spectrum(np.concatenate([audio[i] for i in window])))
            features.append(self._encoded(spectra[-1]))
            yield
        language = told.language or told.belief.best
        same, belief = told.within(language), told.belief.paused() if told.paused else told.belief
        longest = max(s.frames for s in spectra)
        results = self._greedy(self.torch.stack(features), longest, language, same)
        for window, spectrum, heard, result in zip(windows, spectra, features, results, strict=True):
            if result is None or self._doubtful(result, same):
                continue
            yield
            spoken = [(sounds[i].span, sounds[i].voiced) for i in window]
            words = shares(self._timed(spectrum, heard, result), spoken)
            for i, share, part in zip(window, words, self.parts(heard, [s for s, _ in spoken]), strict=True):
                after = belief
                if not told.language:
                    after = belief.heard(self.languages(part), sounds[i].seconds).wrote(result.avg_logprob)
                    if after.best != language:
                        return done  # somebody speaks another language from here on
                text = "".join(word["word"] for word in share).strip()
                if self._too_quiet(audio[i]) or not text.strip(" .,!?-…") or glossary.mostly(text, told.terms):
                    continue
                belief = after
                tokens = tuple(self.prompts.tokenizer(language).encode(" " + text))
                at = placed(share, sounds[i].span, sounds[i].voiced, audio[i])
                done[i] = Decoded(text=text, tokens=tokens, language=language, words=at, belief=belief)
        return done

    def _doubtful(self, result: Any, told: Told) -> bool:
        silent, unsure = self.s.no_speech_threshold, self.s.logprob_threshold
        if not self.whole:
            silent, unsure = silent * cropped.SILENT_AT, unsure * cropped.UNSURE_AT
        quiet = result.no_speech_prob > silent or result.avg_logprob < unsure
        echo = echoes(result.text, self.s.first_prompt) or self.prompts.repeats(result.text, told)
        return quiet or echo or bool(self._why_not(result, result.text.strip()))

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
        return self.model.embed_audio(mel[None])[0] if self.whole else self.encoder(mel, spectrum.frames)

    def _greedy(self, features: Any, frames: int, language: str, told: Told) -> Sequence[Any | None]:
        """features (windows, places, state), so many frames of speech in the longest."""
        options = self._options(TEMPERATURES[0], language, self.prompts.tokens(told))
        return cropped.decode(self.whisper, self.model, features, options, frames)

    def _options(self, temperature: float, language: str, context: tuple[int, ...]) -> Any:
        return self.whisper.DecodingOptions(
            language=language,
            temperature=temperature,
            prompt=list(context) or None,
            without_timestamps=True,
            fp16=self.half,
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
        tokenizer = self.prompts.tokenizer(result.language)
        return timed(self.whisper, self.model, tokenizer, spectrum.mel, spectrum.frames, features, result.tokens)


def floats(pcm: bytes) -> Floats:
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32768.0

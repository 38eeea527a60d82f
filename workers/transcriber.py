"""The transcriber: audio of the backlog in, final text with word times out; every sample gets its class.

Scan: `utterances` cuts with Silero VAD. Infer: openai-whisper decodes one utterance in one window. A final is a pure
function of samples, settings and the state that travels with the position (VAD state and the words before, which are
the decoder's prompt), so a restart after a kill writes exactly what would have been written.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from common import backlog, card, models
from common import messages as m
from common.process import Process, arguments, main
from common.settings import TranscriberSettings, UserError
from workers._torch import set_up
from workers.base import Runner
from workers.captions import echoes, looping, loud, repeats, snapped
from workers.hearing import Hearing, Session, Work
from workers.hypotheses import Glimpses
from workers.interim import Interim, UnderWay, text
from workers.live_text import Glimpse, LiveText
from workers.steps import Step
from workers.utterances import State, Utterances, unpack
from workers.vad import Floats, Rules, Vad

TEMPERATURES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # fallback of Radford et al. 2022, section 4.5
PROMPT_TOKENS = 100
PROMPT_TEMPERATURE = 0.5  # text decoded hotter than this is no context for what follows
T = TypeVar("T")
Pieces = Generator[None, None, T]
EDGE_SAMPLES = m.SAMPLE_RATE // 5  # words may reach this far beyond what the VAD calls voice


class Decoded(msgspec.Struct, frozen=True, kw_only=True):
    """What the decoder made of an utterance; `reason` says why it must not be shown."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    language: str = ""
    words: tuple[m.Word, ...] = ()
    temperature: float = 0.0
    reason: str = ""


class Transcriber(Hearing):
    """Whisper with the thresholds and fallbacks of its paper, on one utterance at a time."""

    name = "transcriber"

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self.s: TranscriberSettings = process.settings.transcriber
        self.rules = Rules.of(self.s)
        self.live_text = LiveText(self, self.s)
        self.vad: Vad

    def load(self, process: Process) -> Sequence[Any]:
        known = models.model(self.s.model)
        if self.s.language != "auto" and not known.knows(self.s.language):
            other = models.for_language(self.s.language)
            get = (
                f"swapscribe models fetch {other.name}, then set transcriber.model={other.name}"
                if other
                else "none here does"
            )
            raise UserError(f"model {self.s.model} does not know language {self.s.language!r}; one that does: {get}")
        folder = models.available(process.settings, self.s.model, check=True)
        vad_folder = models.available(process.settings, "silero_vad", check=True)
        self.torch = torch = set_up(self.s.threads, process.settings.cache)
        import whisper
        import whisper.timing
        from safetensors.torch import load_file

        for kernel in (whisper.timing.dtw_cpu, whisper.timing.backtrace):
            kernel.enable_caching()  # compiled once per machine, not once per start
        self.whisper = whisper
        dims = whisper.ModelDimensions(**models.stored(folder).dims)
        model = whisper.model.Whisper(dims)
        model.load_state_dict(load_file(str(folder / "model.safetensors")), strict=False)
        model.set_alignment_heads(whisper._ALIGNMENT_HEADS[self.s.model])
        model.eval()
        self.half = card.kind(process.settings) == "cuda"
        if self.half:
            model.half()
            for module in model.modules():  # whisper's own way: norms compute in float32, and keep their weights so
                if isinstance(module, torch.nn.LayerNorm):
                    module.float()
        self.vad = Vad(torch, vad_folder)
        self.model = model
        self.glimpses = Glimpses(torch, whisper, model, self.half, self._tokenizer)
        self._sha256 = models.stored(folder).sha256
        return [model]

    def key(self) -> str:
        return f"{self.s.model} {self._sha256} threads={self.s.threads} half={self.half}"

    def working_bytes(self) -> int:
        """Of one utterance: encoder, caches of the decoder, and the attention that word times are made from."""
        d, size = self.model.dims, 2 if self.half else 4
        encoder = d.n_audio_ctx * (12 * d.n_audio_state + d.n_audio_head * d.n_audio_ctx) * size
        caches = 2 * d.n_text_layer * (d.n_text_ctx + d.n_audio_ctx) * d.n_text_state * size
        aligned = d.n_text_layer * d.n_text_head * d.n_text_ctx * d.n_audio_ctx * size
        return int(encoder + caches + aligned + d.n_text_ctx * d.n_vocab * 4)

    def rehearse(self) -> Iterator[None]:
        """A whole window, decoded as far as the decoder goes, with word times."""
        w, d = self.whisper, self.model.dims
        mel = self.torch.zeros(d.n_mels, w.audio.N_FRAMES)
        features = self.model.embed_audio(self._moved(mel)[None])[0]
        yield
        tokenizer = self._tokenizer(self._language(self.model) or "en")
        tokens = tokenizer.encode(" and so on" * 80)[: d.n_text_ctx // 2 - 8]
        result = w.DecodingResult(audio_features=features, language=tokenizer.language, tokens=tokens)
        caches, hooks = self.model.install_kv_cache_hooks()
        try:
            for token in tokens:
                last = self.torch.tensor([[token]]).to(features.device)
                self.model.decoder(last, features[None], kv_cache=caches).argmax()
        finally:
            for hook in hooks:
                hook.remove()
        caches.clear()
        yield
        span = (0, w.audio.N_SAMPLES)
        self._words(self.model, features, mel, w.audio.N_FRAMES, result, span, span)

    def _moved(self, mel: Any) -> Any:
        """A spectrogram where the model is, in its precision."""
        return mel.to(self.model.device, self.torch.float16 if self.half else self.torch.float32)

    def open(self, folder: Path, meta: backlog.Meta, at: m.At) -> Utterances:
        return Utterances(folder, meta, at, self.vad, self.rules)

    # -- interim text -----------------------------------------------------------------------------------------------

    def interim(self, runner: Runner, live: Sequence[Session]) -> bool:
        return self.live_text.turn(runner, live)

    def glimpse(self, state: bytes, now: UnderWay, upto: int, known: Interim) -> Glimpse:
        """As `_hear` would begin, but of a sound without an end; what raises a doubt is not shown."""
        before = unpack(state)
        near = now.start - before.prompt_end <= self.s.prompt_within_s * m.SAMPLE_RATE
        prompt = before.prompt if near and before.model == self.s.model else ()
        audio = np.frombuffer(now.pcm[: (upto - now.start) * 2], "<i2").astype(np.float32) / 32768.0
        lead, wanted = self._first_prompt(), known.language or self._language(self.model)
        for context in (prompt, ()):
            pieces, silent, language = yield from self.glimpses(audio, lead + context, known.stable, wanted)
            said = text([*known.stable, *pieces])
            if not (context and repeats(said, self._tokenizer(language).decode(context))):
                break
            yield  # it counts when it is heard without that text
        doubt = silent > self.s.no_speech_threshold or looping(said) or echoes(said, self.s.first_prompt)
        return () if doubt else pieces, language

    # -- infer ------------------------------------------------------------------------------------------------------

    def infer(self, state: bytes, work: Work) -> Pieces[Step]:
        before = unpack(state)
        near = work.speech[0] - before.prompt_end <= self.s.prompt_within_s * m.SAMPLE_RATE
        near = near and before.model == self.s.model
        done = yield from self._hear(work.pcm, work.speech, work.voiced, before.prompt if near else ())
        prompt = before.prompt if near else ()
        prompt_end = before.prompt_end
        if done.text and not done.reason:
            prompt = (prompt + done.tokens)[-PROMPT_TOKENS:] if done.temperature < PROMPT_TEMPERATURE else ()
            prompt_end = work.speech[1]
        after = State(vad=work.state, prompt=prompt, prompt_end=prompt_end, model=self.s.model)
        return self._step(work, self._body(m.segment_id(work.stream, work.speech[0]), work.speech, done), after)

    def _step(self, work: Work, body: m.Body, after: State) -> Step:
        silence = (m.Silence(span=(work.span[0], work.speech[0])),) if work.speech[0] > work.span[0] else ()
        return Step(positions={"audio": work.span[1]}, events=(*silence, body), state=m.encode(after))

    def skipped(self, state: bytes, work: Work, gap: m.Gap) -> Step:
        return self._step(work, gap, State(vad=work.state))

    def again(self, stream: str, gap: m.Gap, pcm: bytes) -> Pieces[m.Body]:
        done = yield from self._hear(pcm, gap.span, gap.span, ())
        body = self._body(gap.segment, gap.span, done)
        old = f"{gap.segment}/{gap.revision}"
        return msgspec.structs.replace(body, revision=gap.revision + 1, supersedes=old)

    def _body(self, segment: str, span: m.Span, done: Decoded) -> m.Transcript | m.Suppressed:
        if done.reason:
            return m.Suppressed(span=span, text=done.text, reason=done.reason, segment=segment)
        return m.Transcript(
            segment=segment,
            span=span,
            text=done.text,
            language=done.language,
            words=done.words,
            model=self.s.model,
        )

    def _hear(self, pcm: bytes, span: m.Span, voiced: m.Span, prompt: tuple[int, ...]) -> Pieces[Decoded]:
        """Decode one utterance; never raises on odd audio, always says what it made of it."""
        audio = np.frombuffer(pcm, "<i2").astype(np.float32) / 32768.0
        rms = float(np.sqrt(np.mean(np.square(audio, dtype=np.float64)))) if len(audio) else 0.0
        if rms <= 10 ** (self.s.level_gate_dbfs / 20):
            return Decoded(reason="too quiet")
        w, model = self.whisper, self.model
        mel = w.log_mel_spectrogram(self.torch.from_numpy(audio), model.dims.n_mels, padding=w.audio.N_SAMPLES)
        frames = mel.shape[-1] - w.audio.N_FRAMES
        mel = w.pad_or_trim(mel, w.audio.N_FRAMES)
        features = model.embed_audio(self._moved(mel)[None])[0]
        yield
        result = yield from self._decode(model, features, span[0], prompt)
        text = result.text.strip()
        reason = self._why_not(result, text)
        if reason:
            return Decoded(text=text, language=result.language, reason=reason)
        yield
        words = self._words(model, features, mel, frames, result, span, voiced)
        words = snapped(words, loud(audio), span[0], min(span[1], voiced[1] + EDGE_SAMPLES))
        tokens = tuple(t for t in result.tokens if t < self._tokenizer(result.language).eot)
        return Decoded(
            text=text, tokens=tokens, language=result.language, words=words, temperature=float(result.temperature)
        )

    def _decode(self, model: Any, features: Floats, first: int, prompt: tuple[int, ...]) -> Pieces[Any]:
        """Greedy with the prompt, then without it (it is what loops feed on), then warmer and warmer.

        Where nobody speaks, the decoder is sure of what the prompt tells it. So what repeats the text before counts
        only when it is heard without that text, and what may be no speech only when it is heard without any prompt.
        """
        lead = self._first_prompt()
        tries = [(TEMPERATURES[0], lead + prompt)] + [(t, lead) for t in (TEMPERATURES if prompt else TEMPERATURES[1:])]
        result = None
        while tries:
            if result:
                yield  # each try may take as long as the decoder goes
            (temperature, context), *tries = tries
            self.torch.manual_seed(first)  # sampling is a function of the place in the stream
            options = self.whisper.DecodingOptions(
                language=self._language(model),
                temperature=temperature,
                prompt=list(context) or None,
                without_timestamps=True,
                fp16=self.half,
            )
            result = model.decode(features, options)
            quiet = result.no_speech_prob > self.s.no_speech_threshold
            unsure = result.avg_logprob < self.s.logprob_threshold
            if quiet and unsure:
                break
            if context and (quiet or echoes(result.text, self.s.first_prompt)):
                tries = [(t, ()) for t in TEMPERATURES]  # what it says again without any prompt was really said
                continue
            if len(context) > len(lead) and repeats(result.text, self._tokenizer(result.language).decode(prompt)):
                continue
            if not (unsure or result.compression_ratio > self.s.compression_ratio_threshold):
                break
        return result

    def _first_prompt(self) -> tuple[int, ...]:
        """Tokens that make the decoder expect running speech; without any context it mishears short utterances."""
        if not self.s.first_prompt or (self.model.is_multilingual and self.s.language != "en"):
            return ()
        return tuple(self._tokenizer("en").encode(" " + self.s.first_prompt.strip()))

    def _language(self, model: Any) -> str | None:
        if self.s.language != "auto":
            return self.s.language
        return None if model.is_multilingual else "en"

    def _tokenizer(self, language: str) -> Any:
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

    def _words(
        self, model: Any, features: Any, mel: Any, frames: int, result: Any, span: m.Span, voiced: m.Span
    ) -> tuple[m.Word, ...]:
        """Word times by cross-attention alignment, held inside what the VAD calls voice, monotone."""
        segment = {"seek": 0, "start": 0.0, "end": frames / 100, "tokens": result.tokens}
        self.whisper.timing.add_word_timestamps(
            segments=[segment],
            model=Heard(model, features),
            tokenizer=self._tokenizer(result.language),
            mel=mel,
            num_frames=frames,
            last_speech_timestamp=0.0,
        )
        low, high = max(span[0], voiced[0] - EDGE_SAMPLES), min(span[1], voiced[1] + EDGE_SAMPLES)
        words, at = [], low
        for w in segment["words"]:
            start = min(max(span[0] + round(w["start"] * m.SAMPLE_RATE), at), high)
            end = min(max(span[0] + round(w["end"] * m.SAMPLE_RATE), start), high)
            words.append(m.Word(text=w["word"], span=(start, end), p=round(float(w["probability"]), 4)))
            at = end
        return tuple(words)


class Heard:
    """A model that has heard this audio: whisper's alignment asks for a full forward, but the encoder ran before."""

    def __init__(self, model: Any, features: Any) -> None:
        self._model, self._features = model, features

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, mel: Any, tokens: Any) -> Any:
        return self._model.decoder(tokens, self._features[None])


def run(process: Process) -> None:
    Runner(process, Transcriber(process)).run()


if __name__ == "__main__":
    main("transcriber", run, arguments(__doc__ or ""))

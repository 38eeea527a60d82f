"""The transcriber: audio of the backlog in, final text with word times out; every sample gets its class.

Scan: `utterances` cuts with Silero VAD. Infer: `decoding` has openai-whisper decode one utterance in one window. A
final is a pure function of samples, settings and the state that travels with the position (VAD state, the words
before, which are the decoder's prompt, and which language is spoken), so a restart after a kill writes exactly what
would have been written. Only where captions are late several utterances are decoded at once, with one prompt for all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

from common import backlog, card, models, told
from common import messages as m
from common.given_sources import with_added
from common.process import Process, arguments, main
from common.settings import TranscriberSettings, UserError
from workers._torch import set_up, unfilled, whisper_without_compiler
from workers.base import Runner
from workers.captioner import Captioner
from workers.catchup import how_many
from workers.decoding import Decoded, Decoder, Pieces, Sound
from workers.delays import Timed
from workers.hypotheses import Glimpses
from workers.interim import Interim, UnderWay
from workers.language import Belief
from workers.live_text import Glimpse, LiveText
from workers.prompts import Told
from workers.session import Speech, Utterance
from workers.silence import KeptSilence
from workers.steps import Step
from workers.utterances import State, Utterances, unpack
from workers.vad import Rules, Vad

CUDA_WINDOWS = 4  # a step of the decoder takes a card hardly longer for four than for one; a CPU four times as long


class Transcriber(Captioner):
    """Utterances of all streams to Whisper; what it makes of them to the journal."""

    name = "transcriber"

    def __init__(self, process: Process) -> None:
        super().__init__(process)
        self.s: TranscriberSettings = process.settings.transcriber
        self.rules = Rules.of(self.s)
        self.live_text = LiveText(self, self.s, self.delays.text)
        self.vad: Vad
        self.decoder: Decoder
        self._windows = 1  # decoded as one batch while captions are late; less once that many did not fit

    def load(self, process: Process) -> Sequence[Any]:
        known = models.model(self.s.model)
        if refused := models.unknown_language(known, self.s.language):
            raise UserError(refused)
        names = (self.s.model, "silero_vad")
        folder, vad_folder = (models.available(process.settings, name) for name in names)
        with ThreadPoolExecutor(1) as beside:  # files are hashed while libraries are imported
            checked = beside.map(lambda name: models.available(process.settings, name, check=True), names)
            self.torch = torch = set_up(self.s.threads, process.settings.cache)
            whisper = whisper_without_compiler()
            from safetensors.torch import load_file

            list(checked)

        dims = whisper.ModelDimensions(**models.stored(folder).dims)
        with unfilled(torch):
            model = whisper.model.Whisper(dims)
        lacks = model.load_state_dict(load_file(str(folder / "model.safetensors")), strict=False).missing_keys
        if lacks:
            raise UserError(f"model {self.s.model} lacks {lacks[0]}: swapscribe models fetch {self.s.model}")
        model.set_alignment_heads(whisper._ALIGNMENT_HEADS[self.s.model])
        model.eval()
        self.half = card.kind(process.settings) == "cuda"
        if self.half:
            model.half()
            for module in model.modules():  # whisper's own way: norms compute in float32, and keep their weights so
                if isinstance(module, torch.nn.LayerNorm):
                    module.float()
        self.vad = Vad(torch, vad_folder)
        self._sha256 = models.stored(folder).sha256
        silence = KeptSilence(process.settings.data / "silence.safetensors", f"{self.s.model} {self._sha256}")
        self.decoder = Decoder(self.s, torch, whisper, model, self.half, silence)
        self.choose_windows()
        self.glimpses = Glimpses(self.decoder)
        self._know_languages(process, known)
        return [model]

    def prepare(self) -> None:
        self.decoder.prompts.tokenizer("en")

    def _know_languages(self, process: Process, known: models.Model) -> None:
        """What may surprise people is said once, at the start: one language only, a glossary that is too long."""
        self._known = known
        self._fitting: dict[tuple[str, ...], tuple[str, ...]] = {}
        for more in ((), *(s.glossary for s in with_added(process.settings).source)):
            self._terms(more)
        if only := models.only_language(process.settings):
            process.log.info(only)

    def _terms(self, more: Sequence[str]) -> tuple[str, ...]:
        """Those of the source first: they go last where place is short."""
        wanted = tuple(dict.fromkeys((*more, *self.s.glossary)))
        if wanted not in self._fitting:
            fit = self._fitting[wanted] = self.decoder.prompts.fitting(wanted)
            if len(fit) < len(wanted):
                left = ", ".join(wanted[len(fit) :])
                self.log.warning("the glossary is too long: its end is not used", terms=len(wanted), left=left[:200])
        return self._fitting[wanted]

    def refuses(self, meta: backlog.Meta) -> str:
        return models.unknown_language(self._known, meta.language or self.s.language)

    def choose_windows(self) -> None:
        self._windows = min(self.s.batch_most, self.s.batch_windows or (CUDA_WINDOWS if self.half else 1))

    def key(self) -> str:
        shape = f"threads={self.s.threads} half={self.half} windows={self._windows}"
        return f"{self.s.model} {self._sha256} {shape}"

    def working_bytes(self) -> int:
        return self.decoder.working_bytes(self._windows)

    def least_working_bytes(self) -> int:
        return self.decoder.working_bytes(1)

    def rehearse(self) -> Iterator[None]:
        return self.decoder.rehearse(self._windows)

    def open(self, folder: Path, meta: backlog.Meta, at: m.At) -> Utterances:
        return Utterances(folder, meta, at, self.vad, self.rules)

    # -- interim text -----------------------------------------------------------------------------------------------

    def interim(self, runner: Runner, live: Sequence[Speech]) -> bool:
        return self.live_text.turn(runner, live)

    def written(self, session: Speech, work: Utterance, step: Step, timed: Timed) -> None:
        super().written(session, work, step, timed)
        live = session.meta.lane == "live" and not session.meta.ended
        if live and any(isinstance(e, m.Transcript) for e in step.events):
            self.live_text.final(work.stream, work.speech)

    def note(self) -> str:
        return self.live_text.note()

    def glimpse(self, state: bytes, now: UnderWay, upto: int, known: Interim) -> Glimpse:
        return self.glimpses(now, upto, known, self._told(unpack(state), now.start, now.language, now.glossary))

    # -- infer ------------------------------------------------------------------------------------------------------

    def infer(self, state: bytes, work: Utterance) -> Pieces[Step]:
        before = unpack(state)
        done = yield from self.decoder.hear(sound(work), self._told_of(before, work))
        return self._became(before, work, done)

    def _told_of(self, before: State, work: Utterance) -> Told:
        return self._told(before, work.speech[0], work.language, work.glossary)

    def _told(self, before: State, start: int, language: str, glossary: Sequence[str]) -> Told:
        """Text before an utterance is its context if it is near enough, and as long as it is in the same language."""
        quiet_s = (start - before.prompt_end) / m.SAMPLE_RATE
        near = quiet_s <= self.s.prompt_within_s and before.model == self.s.model
        return Told(
            language=self.decoder.prompts.fixed(language),
            before=before.prompt if near else (),
            belief=before.belief if before.model == self.s.model else Belief(),
            paused=quiet_s > self.s.language_pause_s,
            terms=self._terms(glossary),
        )

    def _became(self, before: State, work: Utterance, done: Decoded) -> Step:
        told, prompt_end = self._told_of(before, work), before.prompt_end
        belief = told.belief
        prompt = told.before
        if done.text and not done.reason:
            prompt = done.prompt_after(told.within(done.language).before)
            prompt_end, belief = work.speech[1], done.belief
            if belief.best != told.belief.best:
                self.log.info("language", stream=work.stream, now=belief.best, before=told.belief.best or "not known")
        after = State(vad=work.state, prompt=prompt, prompt_end=prompt_end, model=self.s.model, belief=belief)
        return self._step(work, self._body(m.segment_id(work.stream, work.speech[0]), work.speech, done), after)

    # Catching up

    def together(self, session: Speech, late_s: float) -> int:
        """A recording is not late: its captions had better be the same each time."""
        of_one_language = self.decoder.prompts.fixed(session.meta.language) or unpack(session.at.state).belief.settled
        return how_many(late_s, self.s) if of_one_language and session.meta.lane == "live" else 1

    def bytes_of(self, works: Sequence[Utterance]) -> int:
        windows = len(self.decoder.windows([sound(w) for w in works]))
        return self.decoder.working_bytes(min(windows, self._windows))

    def too_large(self) -> None:
        self._windows = max(1, self._windows // 2)

    def infer_all(self, state: bytes, works: Sequence[Utterance], steps: list[Step]) -> Pieces[None]:
        """The first windows of them, with the prompt that the first one has; what raises a doubt then alone."""
        windows = self.decoder.windows([sound(w) for w in works])[: self._windows]
        works = works[: windows[-1].stop]
        found = yield from self.decoder.hear_all([sound(w) for w in works], self._told_of(unpack(state), works[0]))
        for work, done in zip(works, found, strict=True):
            before = unpack(steps[-1].state if steps else state)
            if done is None:
                yield
                done = yield from self.decoder.hear(sound(work), self._told_of(before, work))
            steps.append(self._became(before, work, done))

    def _step(self, work: Utterance, body: m.Body, after: State) -> Step:
        silence = (m.Silence(span=(work.span[0], work.speech[0])),) if work.speech[0] > work.span[0] else ()
        return Step(positions={"audio": work.span[1]}, events=(*silence, body), state=m.encode(after))

    def skipped(self, state: bytes, work: Utterance, gap: m.Gap) -> Step:
        before = unpack(state)
        return self._step(work, gap, State(vad=work.state, model=before.model, belief=before.belief))

    def again(self, stream: str, gap: m.Gap, pcm: bytes) -> Pieces[m.Body]:
        meta = backlog.read_meta(self.settings.streams / stream)
        language, terms = (meta.language, meta.glossary) if meta else ("", ())
        told = Told(language=self.decoder.prompts.fixed(language), terms=self._terms(terms))
        done = yield from self.decoder.hear(Sound(pcm, gap.span, gap.span), told)
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


def sound(work: Utterance) -> Sound:
    return Sound(work.pcm, work.speech, work.voiced)


def run(process: Process) -> None:
    try:
        told.tell(process.run, process.settings)
    except OSError as e:  # a full disk: captions go on
        process.log.warning("my settings cannot be told", error=str(e))
    Runner(process, Transcriber(process)).run()


if __name__ == "__main__":
    main("transcriber", run, arguments(__doc__ or ""))

"""What Whisper makes of an utterance that is still being spoken: one greedy pass, quick rather than thorough.

It hears the speech so far in a window cropped to it, begins with the words that are stable already, stops after so many
new tokens, and says of each word how sure it is and where in the audio it was heard (cross-attention of the alignment
heads). No fallbacks and no word times: those belong to the final, which owes nothing to this file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from common.messages import SAMPLE_RATE
from workers.captions import echoes, looping
from workers.cropped import FRAME, ROUND
from workers.decoding import Decoder, Pieces, floats
from workers.encoder import PAD_S, PLACE
from workers.glossary import mostly
from workers.interim import Interim, Piece, UnderWay, text
from workers.prompts import WHOLE, Told
from workers.text_decoder import logits, states

SAME_PLACE = 10  # encoder places, 0.2 s: a token again, heard no further away than this, is the same sound
PAD = round(PAD_S * SAMPLE_RATE) + (ROUND + 1) * PLACE  # samples of silence that a cropped window may ask for
TOKENS_S = 8  # nobody speaks more in a second
TOKENS_MORE = 8
Found = tuple[Sequence[Piece], str]


class Glimpses:
    """A greedy decoder of whatever there is of an utterance."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._torch, self._model = decoder.torch, decoder.model
        self._suppressed: dict[str, list[int]] = {}
        self._heads: dict[int, list[int]] = {}
        for layer, head in self._model.alignment_heads.indices().T.tolist():
            self._heads.setdefault(layer, []).append(head)

    def __call__(self, now: UnderWay, upto: int, known: Interim, told: Told) -> Pieces[Found]:
        """What follows the stable words in the audio before `upto`; the language, which stays once a word is stable.

        Nothing where the whole may be no speech, a loop, or what the prompt says: the final has better means.
        """
        d, s, prompts = self._decoder, self._decoder.s, self._decoder.prompts
        audio = floats(now.pcm[: (upto - now.start) * 2])
        with self._torch.no_grad():
            mel = d.whisper.log_mel_spectrogram(self._torch.from_numpy(audio), d.model.dims.n_mels, padding=PAD)
            features = d.encoder(d.moved(mel), len(audio) // FRAME)[None]
        yield
        pieces, silent, said = list[Piece](), 0.0, ""
        language = told.language or (known.language if known.stable else "")
        if not language:
            belief = told.belief.paused() if told.paused else told.belief
            language = belief.heard(d.languages(features[0]), (upto - now.onset) / SAMPLE_RATE).best
        told, tokenizer = told.within(language), prompts.tokenizer(language)
        tries = [WHOLE]
        while tries:
            this = tries.pop()
            with self._torch.no_grad():
                prompt = prompts.tokens(told, this)
                pieces, silent = self._decode(features, tokenizer, prompt, known.stable, len(audio))
            said = text([*known.stable, *pieces])
            # What it was told counts when it is heard without that text.
            if this.glossary and mostly(said, told.terms):
                tries = [this._replace(glossary=False)]
                yield
            elif this.before and prompts.repeats(said, told):
                tries = [this._replace(before=False)]
                yield
        doubt = silent > s.no_speech_threshold or looping(said) or echoes(said, s.first_prompt)
        return () if doubt else pieces, language

    def _decode(
        self, features: Any, tokenizer: Any, prompt: Sequence[int], stable: Sequence[Piece], samples: int
    ) -> tuple[list[Piece], float]:
        """The words behind the stable ones, and P(no speech); so many samples are heard, what follows is silence.

        A decoder whose window ends soon after the speech says it again and again: it looks at the same sound again.
        """
        torch, model = self._torch, self._model
        heard = min(samples // PLACE, features.shape[1])
        seconds = (heard - max((p.heard for p in stable), default=0)) * PLACE / SAMPLE_RATE
        queries: dict[int, Any] = {}
        hooks = [
            model.decoder.blocks[layer].cross_attn.query.register_forward_hook(
                lambda _, ins, out, layer=layer: queries.__setitem__(layer, out[0, -1])
            )
            for layer in self._heads
        ]
        cache, more = model.install_kv_cache_hooks()
        hooks += more
        suppressed, blank = self._never(tokenizer), [*tokenizer.encode(" "), tokenizer.eot]
        written = [(token, piece.heard) for piece in stable for token in piece.tokens]
        first, sot = len(written), len(prompt) + bool(prompt)
        probs: list[float] = []
        silent = 0.0
        try:
            begin = [*([tokenizer.sot_prev, *prompt] if prompt else []), *tokenizer.sot_sequence_including_notimestamps]
            given = torch.tensor([[*begin, *(t for t, _ in written)]], device=features.device)
            keys: list[tuple[int, Any]] = []
            for _ in range(TOKENS_MORE + round(TOKENS_S * seconds)):
                found = states(model, given, features, cache)
                if not keys:
                    keys = self._keys(cache, heard)
                    silent = float(logits(model, found[:, sot]).softmax(-1)[0, tokenizer.no_speech])
                chances = logits(model, found[:, -1])[0]
                chances[suppressed] = -torch.inf
                if not written:
                    chances[blank] = -torch.inf
                logp, best = chances.log_softmax(-1).max(-1)
                token, place = int(best), self._looks_at(queries, keys)
                if token == tokenizer.eot or _again(tokenizer, token, place, written):
                    break
                written.append((token, place))
                probs.append(float(logp.exp()))
                given = best.reshape(1, 1)
        finally:
            for hook in hooks:
                hook.remove()
        return list(_pieces(tokenizer, written[first:], probs)), silent

    def _keys(self, cache: Any, heard: int) -> list[tuple[int, Any]]:
        """Of each layer with alignment heads: the keys of their places with speech, (heads, size, places)."""
        out, n = [], self._model.dims.n_text_head
        for layer, heads in self._heads.items():
            k = cache[self._model.decoder.blocks[layer].cross_attn.key][0, : max(1, heard)]
            out.append((layer, k.view(len(k), n, -1)[:, heads].permute(1, 2, 0)))
        return out

    def _looks_at(self, queries: dict[int, Any], keys: list[tuple[int, Any]]) -> int:
        """The place that the alignment heads look at most while they write the next token."""
        n, total = self._model.dims.n_text_head, 0.0
        for layer, k in keys:
            q = queries[layer].view(n, 1, -1)[self._heads[layer]]  # (heads, 1, size)
            total = total + ((q @ k) * q.shape[-1] ** -0.5).float().softmax(-1).sum((0, 1))
        return int(total.argmax())  # type: ignore[attr-defined]

    def _never(self, tokenizer: Any) -> list[int]:
        """Tokens that are no speech, as whisper's own decoding leaves them out."""
        if tokenizer.language not in self._suppressed:
            marks = (tokenizer.transcribe, tokenizer.translate, tokenizer.sot, tokenizer.sot_prev, tokenizer.sot_lm)
            self._suppressed[tokenizer.language] = [*tokenizer.non_speech_tokens, *marks, tokenizer.no_speech]
        return self._suppressed[tokenizer.language]


def _again(tokenizer: Any, token: int, place: int, written: Sequence[tuple[int, int]]) -> bool:
    same = any(t == token and abs(other - place) <= SAME_PLACE for t, other in written)
    return same and any(c.isalnum() for c in tokenizer.decode([token]))


def _pieces(tokenizer: Any, written: Sequence[tuple[int, int]], probs: Sequence[float]) -> Iterator[Piece]:
    words, parts = tokenizer.split_to_word_tokens([t for t, _ in written])
    at = 0
    for word, part in zip(words, parts, strict=True):
        end = at + len(part)
        yield Piece(word, tuple(part), min(probs[at:end]), max(place for _, place in written[at:end]))
        at = end

"""Which language is spoken on a stream that does not say: a belief that travels with the position. Pure.

In: for each utterance, how probable the model finds each language, and how well it could write down what it heard.
Out: the language to decode in. It is the filter of a hidden Markov model that seldom changes its state: evidence adds
up over the first utterances, and then a language stays although a short or unclear utterance sounds like another one; a
real switch shows in one clear utterance or two short ones. After a long pause less evidence will do.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import log

import msgspec

STICKY = 3.0  # log odds: evidence of 20 to 1 takes the language away from the one before
SETTLED = 2.0  # log odds to the next one: what follows may be decoded in the same language unheard
PAUSED = 0.7  # after a long pause: 2 to 1 will do
LEAST = 1e-3  # no utterance alone says more than 1000 to 1
WHOLE_S = 3.0  # speech shorter than this says less, in proportion
CLOSE = 3.0  # while nothing is settled, a language this many times less probable is tried as well
WORSE = 0.35  # mean log probability below the usual one: a sign that the language is another
BETTER = 0.1  # and above that of the first try: it is
_RECENT = 0.2  # share of the newest text in what is usual


class Belief(msgspec.Struct, frozen=True, kw_only=True):
    """`best` leads any other language by its log odds in `rivals`, or by `lead` when it is not there."""

    best: str = ""  # empty: nobody has spoken yet
    rivals: dict[str, float] = {}
    lead: float = 0.0
    usual: float = 0.0  # mean log probability of recent texts in this language; 0: none yet

    @property
    def settled(self) -> bool:
        return bool(self.best) and min([self.lead, *self.rivals.values()]) >= SETTLED

    def paused(self) -> Belief:
        """The same after a long pause: somebody else may speak."""
        rivals = {code: min(odds, PAUSED) for code, odds in self.rivals.items()}
        return msgspec.structs.replace(self, rivals=rivals, lead=min(self.lead, PAUSED))

    def heard(self, probs: Mapping[str, float], seconds: float) -> Belief:
        """After an utterance with `seconds` of speech that the model finds to be in these languages."""
        weight = min(1.0, seconds / WHOLE_S)
        scores = {
            code: weight * log(max(p, LEAST)) - (0.0 if code == self.best else self.rivals.get(code, self.lead))
            for code, p in probs.items()
        }
        best = max(scores, key=lambda code: (scores[code], code == self.best, code))
        return self._led_by(best, {code: scores[best] - score for code, score in scores.items()})

    def _led_by(self, best: str, below: Mapping[str, float]) -> Belief:
        rivals = {code: round(odds, 3) for code, odds in sorted(below.items()) if odds < STICKY and code != best}
        return Belief(best=best, rivals=rivals, lead=STICKY, usual=self.usual if best == self.best else 0.0)

    def wrote(self, logprob: float) -> Belief:
        """After a text in this language with this mean log probability."""
        usual = (1 - _RECENT) * self.usual + _RECENT * logprob if self.usual else logprob
        return msgspec.structs.replace(self, usual=round(usual, 4))

    def rival(self, probs: Mapping[str, float], logprob: float, failed: bool) -> str:
        """Another language that the same utterance should be decoded in too; empty: none.

        `failed`: what was written down in this one cannot be shown.
        """
        other = max((code for code in probs if code != self.best), key=lambda code: (probs[code], code))
        if failed or (self.usual and logprob < self.usual - WORSE):
            return other if probs[other] > probs[self.best] else ""
        return other if not self.settled and probs[other] * CLOSE >= probs[self.best] else ""

    def proved(self, rival: str) -> Belief:
        """After an utterance that could be written down better in `rival`."""
        below = {code: odds + SETTLED / 2 for code, odds in self.rivals.items()}
        return self._led_by(rival, below | {self.best: SETTLED / 2})

"""A subscriber that only applies events, by the words of PROTOCOL.md; it imports nothing of ours.

In: envelopes as MessagePack maps, in any order. Out: what `swapscribe export --format json --words` prints, as an
object. Nothing clever: each time every rule is carried out anew on all events.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import msgpack

RATE = 16_000
Body = dict[str, Any]


class Subscriber:
    """Holds the events of one stream; `state` looks at all of them."""

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.events: dict[int, tuple[Body, Body | None]] = {}  # envelope and body, by seq

    def take(self, data: bytes) -> None:
        envelope = msgpack.unpackb(data)
        if envelope["stream"] == self.stream:
            body = None if envelope["purged"] else msgpack.unpackb(envelope["body"])
            self.events[envelope["seq"]] = (envelope, body)

    def state(self) -> Body:
        gone = {
            n
            for _, b in self.events.values()
            if b and b["type"] == "purged"
            for x, y in b["seqs"]
            for n in range(x, y + 1)
        }
        self.held = [(e, b) for n, (e, b) in sorted(self.events.items()) if n not in gone and b]
        began, ended = self._of("stream_started"), self._of("stream_ended")
        self.texts, without = self._texts()
        order = sorted(self.texts.values(), key=lambda b: (b["span"], b["segment"]))
        self.talk = self._talk()
        names = self._names()
        known: Body = {
            "stream": self.stream,
            "seq": max(self.events, default=0),
            "source": began[-1][1]["source"] if began else None,
            "lane": began[-1][1]["lane"] if began else None,
            "started_ns": began[-1][1]["started_ns"] if began else None,
            "duration_s": s((ended and ended[-1][1]["end"]) or max([0, *(b["span"][1] for b in order + without)])),
            "ended": ended[-1][1]["reason"] if ended else None,
            "segments": [self._segment(b) for b in order],
            "suppressed": [
                {**span(b["span"]), "text": b["text"].strip(), "reason": b["reason"]}
                for b in without
                if b["type"] == "suppressed"
            ],
            "gaps": [{**span(b["span"]), "reason": b["reason"]} for b in without if b["type"] == "gap"],
            "translations": {t: self._sentences(t, order) for t in sorted(self._targets())},
            "untranslated": {t: self._left(t, order) for t in sorted(self._targets())},
            "minutes": [
                {**span(b["span"] or (0, 0)), **{k: b[k] for k in ("bullets", "model", "coverage")}}
                for _, b in sorted(self._of("summary"), key=lambda eb: eb[1]["span"] or [0, 0])
            ],
        }
        if self.talk:
            ids = sorted(self.talk, key=number)
            known["speakers"] = [
                {"speaker": i, "name": names.get(i) or None, "seconds": s(sum(b - a for a, b in self.talk[i]))}
                for i in ids
            ]
            known["turns"] = [{"speaker": i, **span(x)} for x, i in sorted((x, i) for i in ids for x in self.talk[i])]
        return known

    def _of(self, kind: str) -> list[tuple[Body, Body]]:
        return [(e, b) for e, b in self.held if b["type"] == kind]

    def _texts(self) -> tuple[dict[str, Body], list[Body]]:
        """Section 9, rule 4: the text of each segment; and what stands where none is."""
        versions: dict[str, list[tuple[int, int, Body]]] = {}
        without = []
        for e, b in self.held:
            if b["type"] == "transcript" or (b["type"] in ("suppressed", "gap") and e["producer"] == "transcriber"):
                if b["segment"]:
                    versions.setdefault(b["segment"], []).append((b["revision"], e["seq"], b))
                elif b["type"] != "transcript":
                    without.append(b)
        texts = {}
        for segment, all_of_it in versions.items():
            named = {b["supersedes"] for _, _, b in all_of_it}
            left = [(r, n, b) for r, n, b in all_of_it if f"{segment}/{r}" not in named]
            if left:
                newest = max(left, key=lambda v: v[:2])[2]
                if newest["type"] == "transcript":
                    texts[segment] = newest
                else:
                    without.append(newest)
        return texts, sorted(without, key=lambda b: (b["span"], b.get("segment", ""), b["reason"], b.get("text", "")))

    def _steps(self, after: int | None) -> list[list[tuple[Body, Body]]]:
        """Section 9, rule 1: appends of relabels in order; the diarizer's only `after` a seq (None: all)."""
        steps: dict[tuple[bool, str, int], list[tuple[Body, Body]]] = {}
        for e, b in self._of("relabel"):
            people = e["producer"] != "diarizer"
            if people or after is None or e["seq"] > after:
                steps.setdefault((people, e["producer"], e["n"]), []).append((e, b))
        return sorted(steps.values(), key=lambda step: (step[0][0]["producer"] != "diarizer", step[0][0]["seq"]))

    def _talk(self) -> dict[str, list[tuple[int, int]]]:
        """Where each speaker talks: stretches that neither touch nor overlap."""
        marks: dict[str, list[tuple[int, int]]] = {}
        for e, turn in self._of("speaker_turn"):
            steps = self._steps(e["seq"])
            first, last = turn["span"]
            borders = {first, last} | {x for step in steps for _, r in step for x in r["span"] or ()}
            inside = sorted(x for x in borders if first <= x <= last)
            for a, b in pairwise(inside):
                label = turn["speaker"]
                for step in steps:
                    before = label
                    for _, r in step:
                        if r["from"] == before and (r["span"] is None or r["span"][0] <= a < r["span"][1]):
                            label = r["to"]
                if label:
                    marks.setdefault(label, []).append((a, b))
        return {who: joined(spans) for who, spans in marks.items()}

    def _names(self) -> dict[str, str]:
        """Section 9, rule 2."""
        given: dict[str, list[tuple[bool, bool, int, str]]] = {}
        for e, b in self._of("speaker_name"):
            who = b["speaker"]
            for step in self._steps(None):
                before = who
                for _, r in step:
                    if r["from"] == before and r["span"] is None:
                        who = r["to"]
            own, people = who == b["speaker"], e["producer"] != "diarizer"
            given.setdefault(who, []).append((people, own, e["seq"], " ".join(b["name"].split())))
        return {who: max(names)[3] for who, names in given.items()}

    def _segment(self, b: Body) -> Body:
        row = {"segment": b["segment"], "revision": b["revision"], **span(b["span"]), "text": b["text"].strip()}
        row |= {"language": b["language"], "model": b["model"]}
        if self.talk:
            row["runs"] = [{"speaker": who or None, **span(x), "text": text} for who, x, text in self._runs(b)]
        row["words"] = [{"text": w["text"].strip(), **span(w["span"]), "p": w["p"]} for w in b["words"]]
        return row

    def _runs(self, b: Body) -> list[tuple[str, tuple[int, int], str]]:
        """Section 9, rule 3: neighbours by the same speaker are one run."""
        words = b["words"] or [{"text": b["text"], "span": b["span"]}]
        runs: list[tuple[str, list[Body]]] = []
        for w in words:
            who = self._who(w["span"], runs[-1][0] if runs else "")
            if runs and runs[-1][0] == who:
                runs[-1][1].append(w)
            else:
                runs.append((who, [w]))
        return [
            (
                who,
                (min(w["span"][0] for w in ws), max(w["span"][1] for w in ws)),
                (b["text"] if len(runs) == 1 else "".join(w["text"] for w in ws)).strip(),
            )
            for who, ws in runs
        ]

    def _who(self, word: list[int], before: str) -> str:
        a, b = word[0], max(word[1], word[0] + 1)
        shares = []
        for who, stretches in self.talk.items():
            shared = sum(max(0, min(b, y) - max(a, x)) for x, y in stretches)
            away, near = min((max(x - b, a - y), x) for x, y in stretches)
            begins = min([x for x, y in stretches if x < b and a < y], default=near)
            if shared or away <= 8000:
                shares.append((-(shared or -away - 1), who != before, begins, number(who), who))
        return min(shares)[-1] if shares else ""

    def _targets(self) -> set[str]:
        return {b["target"] for _, b in self._of("translation") if self._counts(b)}

    def _newest(self, target: str) -> dict[tuple[str, int], Body]:
        return {(b["segment"], b["place"]): b for _, b in self._of("translation") if b["target"] == target}

    def _counts(self, b: Body) -> bool:
        """Section 10, rule 2."""
        return bool(b["text"]) and self._would(b)

    def _would(self, b: Body) -> bool:
        """Whether it would count if it had a text."""
        parts = [f"{b['segment']}/{b['revision']}", *b["goes_on"]]
        texts = [self.texts.get(p.rpartition("/")[0]) for p in parts]
        now = [f"{t['segment']}/{t['revision']}" for t in texts if t]
        return now == parts and self._newest(b["target"])[b["segment"], b["place"]] is b

    def _sentences(self, target: str, order: list[Body]) -> list[Body]:
        """Section 10, rules 3 and 4."""
        rows = []
        for text in order:
            made = [
                (p, b)
                for (seg, p), b in sorted(self._newest(target).items())
                if seg == text["segment"] and self._counts(b)
            ]
            for place, b in made:
                parts = [b["segment"], *(p.rpartition("/")[0] for p in b["goes_on"])]
                where = b["span"] or (text["span"][0], self.texts[parts[-1]]["span"][1])
                row = {"segments": parts, "place": place, **span(where), "text": b["text"]}
                row["source"] = b["source"] or " ".join(self.texts[p]["text"].strip() for p in parts)
                row["source_language"] = b["source_language"] or text["language"]
                rows.append(row | {"suspect": b["suspect"], "model": b["model"] or None})
            if not made and text["language"] == target and text["text"].strip():
                said = text["text"].strip()
                row = {"segments": [text["segment"]], "place": 0, **span(text["span"]), "text": said, "source": said}
                rows.append(row | {"source_language": target, "suspect": None, "model": None})
        return rows

    def _left(self, target: str, order: list[Body]) -> list[Body]:
        """Section 10, rule 5."""
        letters = {t["segment"]: [c for c in t["text"] if not c.isspace()] for t in order}
        marks = {segment: [""] * len(its) for segment, its in letters.items()}  # "f": found, "t": translated
        made = [(seg, b) for (seg, _), b in sorted(self._newest(target).items()) if self._would(b)]
        for text in order:
            for segment, b in made:
                if segment != text["segment"]:
                    continue
                parts = [segment, *(p.rpartition("/")[0] for p in b["goes_on"])]
                all_of_them = [(part, i) for part in parts for i in range(len(letters[part]))]
                source = [c for c in b["source"] if not c.isspace()]
                behind = max((i + 1 for i, mark in enumerate(marks[segment]) if mark), default=0)
                ends = range(behind + len(source), len(all_of_them) + 1)
                found = [n for n in ends if [letters[p][i] for p, i in all_of_them[n - len(source) : n]] == source]
                if source and found:
                    its = all_of_them[found[0] - len(source) : found[0]]
                else:
                    its = all_of_them if b["text"] else []
                for part, i in its:
                    marks[part][i] = "t" if b["text"] else marks[part][i] or "f"
        return [row for t in order if t["language"] != target for row in self._rests(t, marks[t["segment"]])]

    def _rests(self, text: Body, marks: list[str]) -> list[Body]:
        at = [i for i, c in enumerate(text["text"]) if not c.isspace()]
        of_words = [w for w in text["words"] for c in w["text"] if not c.isspace()]  # the word of each letter
        same = [c for w in text["words"] for c in w["text"] if not c.isspace()] == [text["text"][i] for i in at]
        rows, n = [], 0
        while n < len(marks):
            end = n
            while end < len(marks) and marks[end] != "t":
                end += 1
            if end > n:
                if same:
                    words = of_words[n:end]
                    where = (min(w["span"][0] for w in words), max(w["span"][1] for w in words))
                else:
                    start, over = text["span"]
                    size = at[-1] + 1 - at[0]
                    a, b = ((over - start) * (i - at[0]) // size for i in (at[n], at[end - 1] + 1))
                    where = (start + a, start + b)
                said = text["text"][at[n] : at[end - 1] + 1]
                rows.append({"segment": text["segment"], **span(where), "text": said})
            n = max(end, n + 1)
        return rows


def s(samples: int) -> float:
    return round(samples / RATE, 3)


def span(samples: Any) -> Body:
    return {"start_s": s(samples[0]), "end_s": s(samples[1])}


def number(speaker: str) -> tuple[int, str]:
    return (int(speaker[1:]), speaker) if speaker[1:].isdecimal() else (2**31, speaker)


def joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    out: list[tuple[int, int]] = []
    for a, b in sorted(spans):
        out = [*out[:-1], (out[-1][0], max(out[-1][1], b))] if out and a <= out[-1][1] else [*out, (a, b)]
    return out

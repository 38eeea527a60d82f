"""What is due, in a world with a journal in memory: kills, lost answers, two copies, corrections, late targets.

Whatever happens, in the end the journal has the translation of every sentence, and it never had one twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import messages as m
from common.topology import COVERAGE_PRODUCER
from common.translations import Translations
from workers.sentences import Sentences
from workers.steps import Step
from workers.untranslated import Script, Target, translation

pytestmark = pytest.mark.pure
STREAM, HOLD_S, SECOND = "s", 3.0, m.SAMPLE_RATE


def knows(source: str, target: str) -> bool:
    return source in ("en", "pt") and target in ("en", "pt", "de")


class World:
    """The journal, as the feed keeps it: places by compare-and-set, and what was said so far."""

    def __init__(self) -> None:
        self.events: list[m.Event] = []
        self.places: dict[str, m.At] = {}
        self.clock = 0  # samples
        self.newest: dict[str, m.Transcript] = {}
        self.append(COVERAGE_PRODUCER, 0, (m.StreamStarted(source="s", lane="live", started_ns=0),), b"")

    @property
    def head(self) -> int:
        return len(self.events)

    def at(self, producer: str) -> m.At:
        place = self.places.get(producer, m.At(n=0, positions={}, state=b"", head=0))
        return m.At(n=place.n, positions=place.positions, state=place.state, head=self.head)

    def append(self, producer: str, expect_n: int, bodies: Iterable[m.Body], state: bytes, **positions: int) -> m.At:
        place = self.at(producer)
        if place.n == expect_n:
            for body in bodies:
                kind, seq = str(type(body).__struct_config__.tag), self.head + 1
                prev = max((e.seq for e in self.events if e.kind == kind), default=0)
                self.events.append(
                    m.Event(seq=seq, prev=prev, stream=STREAM, kind=kind, producer=producer, n=place.n + 1, at_ns=seq,
                            body=m.encode(body))
                )  # fmt: skip
            self.places[producer] = m.At(n=place.n + 1, positions=place.positions | positions, state=state, head=0)
        return self.at(producer)

    def _say(self, *bodies: m.Body) -> None:
        self.append(COVERAGE_PRODUCER, self.at(COVERAGE_PRODUCER).n, bodies, b"")

    def say(self, text: str, quiet_s: float = 0.2, language: str = "en", seconds: float = 2.0) -> None:
        """A pause, then an utterance: in one append, as the transcriber does."""
        start = self.clock + round(quiet_s * SECOND)
        end = start + round(seconds * SECOND)
        t = m.Transcript(
            segment=m.segment_id(STREAM, start), span=(start, end), text=text, language=language, model="x"
        )
        self._say(*([m.Silence(span=(self.clock, start))] if start > self.clock else []), t)
        self.newest[t.segment], self.clock = t, end

    def be_silent(self, seconds: float) -> None:
        end = self.clock + round(seconds * SECOND)
        self._say(m.Silence(span=(self.clock, end)))
        self.clock = end

    def correct(self, which: int, text: str, language: str = "en") -> None:
        """Another text of a segment, or none."""
        if not self.newest:
            return
        old = sorted(self.newest.values(), key=lambda t: t.span)[which % len(self.newest)]
        more = {"segment": old.segment, "span": old.span, "supersedes": f"{old.segment}/{old.revision}"}
        if text:
            new = m.Transcript(text=text, language=language, model="x", revision=old.revision + 1, **more)
            self.newest[old.segment] = new
            self._say(new)
        else:
            del self.newest[old.segment]
            self._say(m.Suppressed(text="", reason="echo", revision=old.revision + 1, **more))

    def end(self) -> None:
        self._say(m.StreamEnded(end=self.clock, reason="end"))

    def purge(self) -> None:
        seqs = tuple((e.seq, e.seq) for e in self.events if not e.purged and e.kind != "purged")
        self.events = [e if e.kind == "purged" else e.tombstone() for e in self.events]
        for producer, place in self.places.items():
            self.places[producer] = m.At(n=place.n + 2, positions=place.positions, state=b"", head=0)
        self.append("feed", self.at("feed").n, [m.Purged(stream=STREAM, seqs=seqs)], b"")
        self.newest.clear()

    def wanted(self, target: str, ended: bool) -> list[tuple[str, str]]:
        """All sentences that must have a translation in the end: source and text."""
        split = Sentences(HOLD_S)
        found = [s for t in sorted(self.newest.values(), key=lambda t: t.span) for s in split.add(t)]
        found += split.end() if ended else split.reach(self.clock)
        return [
            (s.text, translated(s.text, target)) for s in found if s.language != target and knows(s.language, target)
        ]

    def found(self, target: str) -> list[tuple[str, str]]:
        t = Translations()
        for e in self.events:
            t.take(e)
        return [(s.source, s.text) for s in t.sentences(target) if s.model]


def translated(text: str, target: str) -> str:
    """Stands in for a model."""
    return f"<{target} {text}>"


class Life:
    """One life of a translator: it knows what the journal tells it. Events of a kind may be held back for a while."""

    def __init__(self, world: World, *targets: str) -> None:
        self.world, self.codes = world, targets
        self._begin()

    def _begin(self) -> None:
        places = {code: self.world.at(f"translator.{code}") for code in self.codes}
        self.script = Script(STREAM, places, HOLD_S, knows)
        self.head, self.given = 0, set[int]()

    def hear(self, but: str = "") -> None:
        """What has come, kind by kind in the order of the journal; `but` this kind, of which something was lost."""
        for e in self.world.events:
            if e.kind != but and e.seq not in self.given:
                self.given.add(e.seq)
                self.script.take(e)
        if not but:
            self.head = self.world.head
        self.script.settle(self.head)
        if self.script.stale:  # read again from the journal
            head = self.head
            self._begin()
            for e in self.world.events:
                self.given.add(e.seq)
                self.script.take(e)
            self.script.settle(self.world.head)
            self.script.stale, self.head = False, head

    def step(self, code: str, most: int) -> tuple[Target, Step] | None:
        """The next append; None: there is nothing to do, or not yet."""
        script, target = self.script, self.script.targets[code]
        if target.due and not target.at.n:
            script.noted(target, self.world.append(f"translator.{code}", 0, (), b""))
        if target.at.n and not script.settled(target, self.head):
            return None
        if gone := script.gone(target):
            return target, script.step(target, gone)
        if sentences := script.next(target, most):
            made = [translation(s, code, translated(s.text, code), "", "stand-in") for s in sentences]
            return target, script.step(target, made)
        if script.ended and not script.over(target) and script.reached(target) > target.position:
            return target, script.step(target)
        return None

    def send(self, target: Target, step: Step) -> m.At:
        return self.world.append(f"translator.{target.code}", target.at.n, step.events, step.state, **step.positions)

    def work(self, most: int = 1) -> None:
        """Until nothing is due."""
        for code in self.codes:
            for _ in range(100):
                self.hear()
                if not (found := self.step(code, most)):
                    break
                self.script.moved(found[0], self.send(*found), found[1])
            else:
                raise AssertionError("it never ends")


def assert_none_twice(world: World) -> None:
    """Of each sentence and target, each translation is of other words than the one before."""
    before: dict[tuple[str, int, str], object] = {}
    for e in world.events:
        if isinstance(t := e.decode(), m.Translation):
            made = (t.revision, t.goes_on, t.source)
            assert before.get((t.segment, t.place, t.target)) != made, t
            before[t.segment, t.place, t.target] = made


def meeting() -> World:
    w = World()
    w.say("Good morning. My name is")
    w.say("Mr. Smith. I am")
    w.be_silent(4.0)
    w.say("Bom dia a todos.", language="pt")
    w.say("Let us begin.")
    return w


def test_sentences_go_on_over_segments_and_a_pause_ends_them() -> None:
    w = meeting()
    Life(w, "pt").work()
    source = [s for s, _ in w.found("pt")]
    assert source == ["Good morning.", "My name is Mr. Smith.", "I am", "Let us begin."]
    assert w.found("pt") == w.wanted("pt", False)
    assert [e.decode().goes_on for e in w.events if e.kind == "translation"][1] == (f"{STREAM}:{int(2.4 * SECOND)}/0",)  # type: ignore[union-attr]


def test_a_target_that_is_wanted_later_catches_up_and_nothing_else_is_done_again() -> None:
    w = meeting()
    Life(w, "pt").work()
    before = [e for e in w.events if e.kind == "translation"]
    life = Life(w, "pt", "de")
    life.work(most=8)
    assert w.found("de") == w.wanted("de", False) and len(w.found("de")) == 5
    assert [e for e in w.events if e.kind == "translation" and e.producer == "translator.pt"] == before
    assert {e.producer for e in w.events if e.kind == "translation"} == {"translator.pt", "translator.de"}


def test_an_unknown_pair_is_told_and_holds_nothing_up() -> None:
    w = meeting()
    life = Life(w, "xx", "pt")
    life.work()
    assert life.script.unknown == {("en", "xx"), ("pt", "xx")} and not life.script.targets["xx"].due
    assert w.found("pt") == w.wanted("pt", False)
    w.end()
    life.work()
    assert all(life.script.over(t) for t in life.script.targets.values())


def test_a_correction_is_translated_and_what_is_gone_is_taken_back() -> None:
    w = World()
    w.say("He came. We met")
    w.say("there.")
    life = Life(w, "pt")
    life.work()
    assert [s for s, _ in w.found("pt")] == ["He came.", "We met there."]
    w.correct(0, "He came here.")
    life.work()
    assert [s for s, _ in w.found("pt")] == ["He came here.", "there."]
    gone = [b for e in w.events if isinstance(b := e.decode(), m.Translation) and not b.text]
    assert [(t.segment, t.place) for t in gone] == [("s:3200", 1)]
    w.correct(0, "He came. We met")
    life.work()
    assert [s for s, _ in w.found("pt")] == ["He came.", "We met there."]
    assert_none_twice(w)


def test_the_end_of_a_stream_is_in_the_position_and_a_later_correction_reopens_it() -> None:
    w = meeting()
    w.say("and then")
    w.end()
    life = Life(w, "pt")
    life.work()
    [target] = life.script.targets.values()
    assert life.script.over(target) and target.position == max(e.seq for e in w.events if e.kind == "stream_ended")
    w.correct(0, "Good evening. My name is")
    life.work()
    assert life.script.over(target) and w.found("pt") == w.wanted("pt", True)
    assert_none_twice(w)


def test_what_was_held_back_is_waited_for() -> None:
    """A lost event is healed after later ones of other kinds: no sentence is ended by a pause that was none."""
    w = World()
    w.say("Hello. My name is")
    life = Life(w, "pt")
    life.work()
    w.say("Mr. Smith.")
    w.be_silent(9.0)
    life.hear(but="transcript")
    assert life.step("pt", 8) is None
    life.work()
    assert [s for s, _ in w.found("pt")] == ["Hello.", "My name is Mr. Smith."]
    assert_none_twice(w)


def test_who_comes_back_knows_first_what_was_translated() -> None:
    w = meeting()
    Life(w, "pt").work()
    again = Life(w, "pt")
    again.hear(but="translation")
    assert again.script.targets["pt"].due and again.step("pt", 8) is None
    again.hear()
    assert not again.script.targets["pt"].due and again.step("pt", 8) is None


def test_what_it_wrote_itself_it_knows_before_the_feed_tells() -> None:
    w = World()
    w.say("He came.")
    life = Life(w, "pt")
    for text in ("She came.", "They came.", ""):
        for _ in range(3):
            life.hear(but="translation")
            life.head = w.head  # nothing that others wrote is on its way
            if found := life.step("pt", 8):
                assert life.script.moved(found[0], life.send(*found), found[1])
        if text:
            w.correct(0, text)
    assert len([e for e in w.events if e.kind == "translation"]) == 3
    for e in [e for e in w.events if e.kind == "translation"]:
        life.script.take(e)
        assert not life.script.targets["pt"].due, "an older one of its own is no news"


def test_an_append_of_an_earlier_life_that_comes_late_is_not_taken_for_ours() -> None:
    w = World()
    w.say("One. Two. Three. Four.")
    early = Life(w, "pt")
    early.hear()
    early.step("pt", 1)  # its first append says nothing
    early.hear()
    first = early.step("pt", 1)
    late = Life(w, "pt")
    late.hear()
    found = late.step("pt", 2)
    assert first and found and first[1].positions == found[1].positions
    early.send(*first)  # it was on its way when that one was killed
    assert not late.script.moved(found[0], late.send(*found), found[1])
    late.work()
    assert w.found("pt") == w.wanted("pt", False)
    assert_none_twice(w)


def test_a_purge_between_leaves_no_word_behind() -> None:
    w = meeting()
    life = Life(w, "pt")
    life.hear()
    life.step("pt", 1)
    life.hear()
    found = life.step("pt", 1)
    assert found
    w.purge()
    assert not life.script.moved(found[0], life.send(*found), found[1])
    life.work()
    assert not [e for e in w.events if e.kind == "translation" and not e.purged]
    w.say("A new day.")
    life.work()
    assert [s for s, _ in w.found("pt")] == ["A new day."]


def utterances(count: int) -> list[m.Event]:
    """So many sentences of a stream, each a text for itself."""
    bodies: list[m.Body] = []
    for i in range(count):
        span, segment = (4 * i * SECOND, (4 * i + 3) * SECOND), m.segment_id(STREAM, 4 * i * SECOND)
        bodies.append(m.Transcript(segment=segment, span=span, text=f"This is number {i}.", language="en", model="x"))
        bodies.append(m.Silence(span=(span[1], span[1] + SECOND)))
    return [
        m.Event(seq=seq, prev=0, stream=STREAM, kind=str(type(body).__struct_config__.tag), producer=COVERAGE_PRODUCER,
                n=seq, at_ns=seq, body=m.encode(body))
        for seq, body in enumerate(bodies, 1)
    ]  # fmt: skip


def script(*targets: str) -> Script:
    return Script(STREAM, {code: m.At(n=1, positions={}, state=b"", head=0) for code in targets}, HOLD_S, knows)


def test_many_corrections_are_carried_out_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    w = World()
    for i in range(20):
        w.say(f"This is number {i}.")
    for i in range(20):
        w.correct(i, f"That was number {i}.")
    folds = list[float]()
    monkeypatch.setattr("workers.untranslated.Sentences", lambda hold_s: folds.append(hold_s) or Sentences(hold_s))
    life = Life(w, "pt")
    life.hear()
    assert len(folds) == 2, "one at the beginning, and one for all of them"
    assert [s.text for s in life.script.next(life.script.targets["pt"], 99)] == [s for s, _ in w.wanted("pt", False)]


def test_what_is_to_be_taken_back_has_a_bound_and_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.untranslated.MOST_GONE", 2)
    w = World()
    for i in range(5):
        w.say(f"This is number {i}.")
    Life(w, "pt").work()
    w.end()
    for _ in range(5):
        w.correct(0, "")
    appends = list[int]()
    while True:
        life = Life(w, "pt")  # it is killed after each
        life.hear()
        [target] = life.script.targets.values()
        found = life.step("pt", 8)
        if found is None:
            break
        assert not life.script.over(target)
        appends.append(len(found[1].events))
        assert life.script.moved(target, life.send(*found), found[1])
    assert appends == [2, 2, 1] and life.script.over(target)
    assert w.found("pt") == [] and target.position == w.events[w.head - 6].seq


def test_thousands_that_are_due_make_a_sentence_no_dearer() -> None:
    def cost_s(count: int) -> float:
        s = script("pt")
        for e in utterances(count):
            s.take(e)
        s.settle(2 * count)
        target, began = s.targets["pt"], time.process_time()
        for _ in range(100):
            assert s.oldest_s(target)
            [first] = s.next(target, 1)
            step = s.step(target, [translation(first, "pt", "x", "", "stand-in")])
            assert s.moved(target, m.At(n=target.at.n + 1, positions=step.positions, state=step.state, head=0), step)
        assert len(target.due) == count - 100 and target.position == 200
        return time.process_time() - began

    short, long = min(cost_s(200) for _ in range(3)), min(cost_s(4000) for _ in range(2))
    assert long < 4 * short, (short, long)


def test_of_a_stream_that_goes_on_only_the_end_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.untranslated.KEPT", 40 * SECOND)
    w = World()
    life = Life(w, "pt")
    for i in range(100):
        w.say(f"This is number {i}." if i % 3 else "But")
        life.work()
    s = life.script
    assert s._forgot > 100 and not s.stale
    for held in (s.sentences, s.known_ns, s.known_s, s._seq_of, s._told, s._texts.newest, s.targets["pt"].made):
        assert len(held) < 30
    w.correct(1, "That was number 1.")
    life.work()
    assert len(life.script.sentences) > 60, "it was read again"
    w.end()
    life.work()
    assert w.found("pt") == w.wanted("pt", True)
    assert_none_twice(w)


def test_after_a_purge_in_the_middle_each_event_is_looked_at_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says that the audio before it is covered, so it waits until all has come."""
    events, looked, decode = utterances(400), list[int](), m.Event.decode
    events = [e.tombstone() if e.seq <= 400 else e for e in events]
    monkeypatch.setattr(m.Event, "decode", lambda e: looked.append(e.seq) or decode(e))
    s = script("pt")
    for e in events:
        s.take(e)
    assert not s.targets["pt"].due
    s.settle(800)
    assert len(looked) <= 3 * len(events) and len(s.targets["pt"].due) == 200


things = st.one_of(
    st.tuples(st.just("say"), st.sampled_from(["I go", "Mr.", "Yes. No", "home.", "what? And then", "fine."]),
              st.sampled_from([0.2, 1.0, 3.5]), st.sampled_from(["en", "en", "pt", "xx"])),
    st.tuples(st.just("silent"), st.sampled_from([0.5, 2.5, 6.0])),
    st.tuples(st.just("correct"), st.integers(0, 5), st.sampled_from(["", "Well.", "so", "Dr. A"]),
              st.sampled_from(["en", "pt"])),
    st.tuples(st.just("step"), st.integers(0, 1), st.sampled_from(["pt", "de"]), st.integers(1, 3),
              st.sampled_from(["", "answer lost", "late"])),
    st.tuples(st.just("hear"), st.integers(0, 1), st.sampled_from(["", "transcript", "silence", "translation"])),
    st.tuples(st.just("kill"), st.integers(0, 1)),
    st.tuples(st.just("deliver")),
    st.tuples(st.just("purge")),
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(made=st.lists(things, max_size=30), ended=st.booleans(), seed=st.integers(0, 9))
def test_nothing_is_lost_or_doubled(made: list[tuple], ended: bool, seed: int) -> None:  # type: ignore[type-arg]
    """Two lives at once, each killed now and then, appends that come late or whose answer is lost."""
    w, chance = World(), random.Random(seed)
    lives = [Life(w, "pt", "de"), Life(w, "pt", "de")]
    on_the_way: list[tuple[Life, Target, Step, int]] = []
    for what, *args in made:
        match what:
            case "say":
                w.say(args[0], args[1], args[2])
            case "silent":
                w.be_silent(args[0])
            case "correct":
                w.correct(args[0], args[1], args[2])
            case "purge":
                w.purge()
            case "hear":
                lives[args[0]].hear(but=args[1])
            case "kill":
                lives[args[0]] = Life(w, "pt", "de")
            case "deliver":
                if on_the_way:
                    life, target, step, n = on_the_way.pop(chance.randrange(len(on_the_way)))
                    w.append(f"translator.{target.code}", n, step.events, step.state, **step.positions)
            case "step":
                life = lives[args[0]]
                if found := life.step(args[1], args[2]):
                    target, step = found
                    if args[3] == "late":
                        on_the_way.append((life, target, step, target.at.n))
                        lives[args[0]] = Life(w, "pt", "de")  # a life waits for its answer: this one was killed
                    elif args[3] == "answer lost":
                        life.send(target, step)
                        life.script.moved(target, life.send(target, step), step)  # it is sent again
                    else:
                        life.script.moved(target, life.send(target, step), step)
    if ended:
        w.end()
    for life in lives:
        life.work()
    for target in ("pt", "de"):
        assert w.found(target) == w.wanted(target, ended)
    assert_none_twice(w)


@settings(max_examples=200, deadline=None)
@given(made=st.lists(things, max_size=20), ended=st.booleans(), translated_at=st.integers(0, 20))
def test_corrections_at_once_are_what_they_are_one_by_one(made: list[tuple], ended: bool, translated_at: int) -> None:  # type: ignore[type-arg]
    w = World()
    for i, (what, *args) in enumerate(made):
        if i == translated_at:
            Life(w, "pt").work()
        match what:
            case "say":
                w.say(args[0], args[1], args[2])
            case "silent":
                w.be_silent(args[0])
            case "correct":
                w.correct(args[0], args[1], args[2])
    if ended:
        w.end()
    each, whole = script("pt", "de"), script("pt", "de")
    for e in w.events:
        each.take(e)
        each.settle(e.seq)
        whole.take(e)
    whole.settle(w.head)
    assert whole.sentences == each.sentences and whole.known_ns.keys() == each.known_ns.keys()
    for code in ("pt", "de"):
        one, other = each.targets[code], whole.targets[code]
        assert other.due.gone == one.due.gone and other.due.first(99) == one.due.first(99)
        assert whole.reached(other) == each.reached(one)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), kept_s=st.sampled_from([1, 4, 10]))
def test_what_is_held_no_more_is_read_again_when_it_is_corrected(seed: int, kept_s: int) -> None:
    w, chance = World(), random.Random(seed)
    lives = [Life(w, "pt", "de"), Life(w, "pt", "de")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.untranslated.KEPT", kept_s * SECOND)
        for _ in range(40):
            match chance.randrange(8):
                case 0 | 1 | 2 | 3:
                    text = chance.choice(["I go", "Mr.", "Yes. No", "home.", "what? And then", "fine."])
                    w.say(text, chance.choice([0.2, 1.0, 3.5]), chance.choice(["en", "en", "pt", "xx"]))
                case 4:
                    w.correct(chance.randrange(20), chance.choice(["", "Well.", "so"]), chance.choice(["en", "pt"]))
                case 5:
                    chance.choice(lives).hear(chance.choice(["", "transcript", "silence", "translation"]))
                case 6:
                    lives[chance.randrange(2)] = Life(w, "pt", "de")
                case 7:
                    w.be_silent(1.0)
            if chance.random() < 0.8:
                chance.choice(lives).work(most=chance.randrange(1, 4))
        for life in lives:
            life.work()
    for target in ("pt", "de"):
        assert w.found(target) == w.wanted(target, False)
    assert_none_twice(w)

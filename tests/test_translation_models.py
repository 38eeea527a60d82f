"""The models of the translator: Mozilla's students by our own network, M2M100 and Marian by transformers.

The students are real. M2M100 and Marian here are tiny and have RANDOM weights and vocabularies made of a few sentences:
they prove the way of the data (codes of languages, forced first token, batches, beams), nothing about quality.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

import msgspec
import pytest
import torch

from common import models
from common.settings import GpuSettings, Settings, UserError
from tests.torch_models import settings as store
from tests.torch_models import torchaudio_beside_cpu_torch
from workers import translation_models as tm
from workers.translation_guard import How
from workers.translation_search import Found, Network, Pieces, search

T = TypeVar("T")
TEXTS = ["The rain falls.", "Who?", "We meet again, and nobody is late."]


def whole(pieces: Generator[None, None, T]) -> T:
    while True:
        try:
            next(pieces)
        except StopIteration as e:
            return e.value


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    yield


@pytest.fixture(scope="module")
def students() -> tm.Models:
    try:
        return tm.load(torch, simulated(), ("student-en-pt", "student-pt-en"))
    except UserError as e:
        pytest.skip(str(e))


def simulated() -> Settings:
    return msgspec.structs.replace(store(), gpu=GpuSettings(device="simulated"))


# -- Students


@pytest.mark.speech
def test_students_translate(students: tm.Models) -> None:
    (out,) = whole(students.translate(["Where is the train station?"], "en", "pt"))
    assert out == tm.Translated("Onde está a estação de trem?", "")
    (back,) = whole(students.translate([out.text], "pt", "en"))
    assert back == tm.Translated("Where is the train station?", "")
    with pytest.raises(KeyError):
        whole(students.translate(["Oui."], "fr", "pt"))


@pytest.mark.speech
def test_the_network_is_that_of_transformers(students: tm.Models) -> None:
    """The same weights, their network and their greedy search, without our cells, shortlist and batch."""
    from tests.parallel_text import declaration
    from tests.reference_marian import greedy, reference

    for model, (source, target) in zip(students.models, (("en", "pt"), ("pt", "en")), strict=True):
        net: Any = model.network
        texts = declaration(source, target)[0][10:16]
        short, net.shortlist = net.shortlist, None
        try:
            other = reference(net)
            sources = [model.tokens.encode(text, source, target) for text in texts]
            ours = [f.tokens for f in whole(search(net, sources, target, How(), model.most))]
        finally:
            net.shortlist = short
        assert ours == [greedy(other, s, model.most) for s in sources]


@pytest.mark.speech
def test_a_sentence_gets_the_same_text_in_any_batch(students: tm.Models) -> None:
    from tests.parallel_text import declaration

    model = students.models[0]
    texts = declaration("en", "pt")[0][10:20]
    for how in (How(), How(beams=3)):
        sources = [model.tokens.encode(text, "en", "pt") for text in texts]
        alone = [whole(search(model.network, [s], "pt", how, model.most))[0] for s in sources]
        together = whole(search(model.network, sources, "pt", how, model.most))
        assert [f.tokens for f in together] == [f.tokens for f in alone]
        assert [f.score for f in together] == pytest.approx([f.score for f in alone], abs=1e-5)


@pytest.mark.speech
def test_a_text_too_long_for_the_model_comes_in_parts(students: tm.Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of so small a model that it garbles more than a sentence or two at once: told that it may read no more."""
    monkeypatch.setattr(students.models[0].tokens, "most", 40)
    things = {
        "school": "escola",
        "bridge": "ponte",
        "hospital": "hospital",
        "library": "biblioteca",
        "church": "igreja",
    }
    things |= {"road": "estrada", "house": "casa", "airport": "aeroporto", "theatre": "teatro", "museum": "museu"}
    texts = [f"When the committee met again, it decided to build a {thing} in the old town." for thing in things]
    (out,) = whole(students.translate([" ".join(texts)], "en", "pt"))
    assert len(students.models[0].tokens.encode(" ".join(texts), "en", "pt")) > students.models[0].tokens.most
    at = [out.text.find(thing) for thing in things.values()]
    assert min(at) >= 0 and at == sorted(at), out


@pytest.mark.pure
@pytest.mark.parametrize(("target", "text"), [("en", "one, two, three, four,"), ("zh", "one,two,three,four,")])
def test_parts_are_joined_as_the_language_does(monkeypatch: pytest.MonkeyPatch, target: str, text: str) -> None:
    class Letters:
        most = 6

        def encode(self, text: str, source: str, target: str) -> list[int]:
            return [ord(c) for c in text]

        def decode(self, tokens: Sequence[int]) -> str:
            return "".join(map(chr, tokens))

    def copied(network: Network, todo: list[list[int]], *how: object) -> Pieces[list[Found]]:
        yield
        return [Found(tokens, True, 0.0) for tokens in todo]

    monkeypatch.setattr(tm, "search", copied)
    row = SimpleNamespace(beams=1)
    model = tm.Model(row, Letters(), SimpleNamespace(), [], 24)  # type: ignore[arg-type]
    assert whole(model.translate(["one, two, three, four,"], "fr", target, How())) == [(text, True)]


@pytest.mark.speech
def test_memory_is_bounded_by_what_is_said(students: tm.Models) -> None:
    """Everything the largest pieces make is smaller than `working_bytes`, at any batch."""
    import gc

    others = tensors(gc.get_objects())  # of tests before this one: held, so that nothing new gets their place
    known = {t.untyped_storage()._cdata for t in others}
    for batch in (1, 8):
        most = 0
        for _ in students.rehearse(batch):
            alive = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors(gc.get_objects())}
            own = {t.untyped_storage()._cdata for m in students.modules for t in [*m.parameters(), *m.buffers()]}
            most = max(most, sum(size for key, size in alive.items() if key not in own | known))
        assert 0 < most < students.working_bytes(batch)
    assert students.working_bytes(1) < students.working_bytes(16)


def tensors(objects: list[Any]) -> list[torch.Tensor]:
    """That have memory; other tests' models may be there, with sparse ones."""
    return [o for o in objects if type(o) is torch.Tensor and not o.is_meta and o.layout == torch.strided]


@pytest.mark.speech
def test_what_the_guard_dislikes_is_tried_once_more(students: tm.Models, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that copies at first: the second try is another decoding, alone; what is still wrong is marked."""
    model = students.models[0]
    real, asked = model.translate, list[tuple[int, How]]()

    def copies(texts: Any, source: str, target: str, how: How) -> Any:
        asked.append((len(texts), how))
        if how == model.first or texts[0].startswith("Always"):
            yield
            return [(text, True) for text in texts]
        return (yield from real(texts, source, target, how))

    monkeypatch.setattr(model, "translate", copies)
    always = "Always the same words come out of it again."
    out = whole(students.translate(["Where is the train station in this town?", always], "en", "pt"))
    assert "estação" in out[0].text and out[0].suspect == ""
    assert out[1] == tm.Translated(always, "copied")
    assert asked == [(2, model.first), (1, model.second), (1, model.second)] and model.first != model.second


@pytest.mark.pure
def test_what_cannot_be_loaded_is_one_line(folder: Path) -> None:
    empty = Settings(model_cache=str(folder))
    for names, says in (
        ((), "translate.models is empty"),
        (("tiny.en",), "tiny.en does not translate; these do: student-en-pt"),
        (("student-en-pt",), "swapscribe models fetch student-en-pt"),
        (("nonsense",), "no model named 'nonsense'"),
    ):
        with pytest.raises(UserError, match=says) as e:
            tm.load(torch, empty, names)
        assert "\n" not in str(e.value)


@pytest.mark.pure
def test_an_unknown_pair_names_a_model_that_has_it() -> None:
    both = ("student-en-pt", "student-pt-en")
    assert models.unknown_pair(both, "en", "pt") == models.unknown_pair(both, "pt", "en") == ""
    line = models.unknown_pair(both, "en", "de")
    assert "swapscribe models fetch opus-mt-en-de" in line and '"student-pt-en", "opus-mt-en-de"' in line
    assert "m2m100-418m" in models.unknown_pair(both, "ja", "uk")
    assert "no model here does" in models.unknown_pair(both, "en", "tlh")
    assert models.unknown_pair(("m2m100-1.2b",), "jw", "nn") == ""


# -- transformers


def vocabulary(folder: Path, extra: list[str]) -> dict[str, int]:
    """A SentencePiece model of a few sentences, and its pieces by number, END first as in M2M100 and Marian."""
    import sentencepiece

    text = folder / "text.txt"
    text.write_text("\n".join(TEXTS * 3 + ["A chuva cai sobre a cidade velha.", "Quem é você?", "The old town."]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spm"), vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(folder / "spm.model"))
    names = [pieces.id_to_piece(i) for i in range(3, len(pieces))]
    return {name: i for i, name in enumerate([*extra, *names])}


def small(**more: Any) -> dict[str, Any]:
    sizes = {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "encoder_layers": 2, "decoder_layers": 2}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "max_position_embeddings": 512}
    return sizes | {"init_std": 0.5, "tie_word_embeddings": False} | more  # tied, it would say one word for ever


def ends_often(net: Any, end: int) -> None:
    """A random network seldom ends a text by itself."""
    net.lm_head.weight[end] *= 2


@pytest.fixture(scope="module")
def random_m2m100(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the hub has it, with a TINY network of RANDOM weights."""
    torchaudio_beside_cpu_torch()
    from transformers import M2M100Config, M2M100ForConditionalGeneration, M2M100Tokenizer

    folder = tmp_path_factory.mktemp("m2m100")
    words = vocabulary(folder, ["<s>", "<pad>", "</s>", "<unk>"])
    (folder / "vocab.json").write_text(json.dumps(words))
    tokenizer = M2M100Tokenizer(str(folder / "vocab.json"), str(folder / "spm.model"), num_madeup_words=0)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(11)
    net = M2M100ForConditionalGeneration(M2M100Config(**small(vocab_size=250)))
    ends_often(net, 2)
    net.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def random_marian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of Marian, of two targets that are named before the text."""
    torchaudio_beside_cpu_torch()
    from transformers import MarianConfig, MarianMTModel

    folder = tmp_path_factory.mktemp("marian")
    words = vocabulary(folder, ["</s>", "<unk>", ">>pt<<", ">>es<<"])
    words["<pad>"] = pad = len(words)
    (folder / "vocab.json").write_text(json.dumps(words))
    for side in ("source.spm", "target.spm"):
        (folder / side).write_bytes((folder / "spm.model").read_bytes())
    says = {"source_lang": "eng", "target_lang": "roa", "tokenizer_class": "MarianTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(says))
    torch.manual_seed(12)
    ids = {"pad_token_id": pad, "eos_token_id": 0, "decoder_start_token_id": pad, "bos_token_id": None}
    net = MarianMTModel(MarianConfig(**small(vocab_size=pad + 1), **ids))
    ends_often(net, 0)
    net.save_pretrained(folder)
    return folder


def loaded(folder: Path, name: str) -> tm.Model:
    pytest.importorskip("sentencepiece")
    from workers.translation_hub import load_hub_model

    return load_hub_model(torch, models.model(name), folder, False)


def generated(model: tm.Model, texts: list[str], source: str, target: str, **more: Any) -> list[list[int]]:
    """What transformers' own `generate` writes, without what is forced and what fills up."""
    tokens: Any = model.tokens
    net: Any = model.network
    out = []
    for text in texts:
        ids = torch.tensor([tokens.encode(text, source, target)])
        most = int(2.5 * ids.shape[1]) + 12
        begin = tokens.begin(target)
        if begin:
            more["forced_bos_token_id"] = begin[0]
        more |= {"max_new_tokens": most + len(begin), "forced_eos_token_id": None, "suppress_tokens": net._never}
        found = net.model.generate(ids, num_beams=1, do_sample=False, **more)[0].tolist()[1 + len(begin) :]
        out.append(found[: found.index(net.end)] if net.end in found else found)
    return out


CASES = [("random_m2m100", "m2m100-418m"), ("random_marian", "opus-mt-en-romance")]


@pytest.mark.pure
@pytest.mark.parametrize(("fixture", "name"), CASES)
def test_random_transformers_models_are_searched_as_generate_does(
    fixture: str, name: str, request: pytest.FixtureRequest
) -> None:
    model = loaded(request.getfixturevalue(fixture), name)
    how = How(no_repeat=2)  # or the random Marian says one word for ever
    for target in ("pt", "es"):
        sources = [model.tokens.encode(text, "en", target) for text in TEXTS]
        ours = [f.tokens for f in whole(search(model.network, sources, target, how, model.most))]
        assert ours == generated(model, TEXTS, "en", target, no_repeat_ngram_size=how.no_repeat)
        assert len({tuple(t) for t in ours}) > 1
    first, second = ([t for t, _ in whole(model.translate(TEXTS, "en", x, how))] for x in ("pt", "es"))
    assert first != second, "the target changes nothing"


@pytest.mark.pure
@pytest.mark.parametrize(("fixture", "name"), CASES)
def test_random_transformers_models_in_a_batch_with_beams(
    fixture: str, name: str, request: pytest.FixtureRequest
) -> None:
    """Padding is masked; rows of a sentence stay its own when beams change places and sentences end."""
    model = loaded(request.getfixturevalue(fixture), name)
    sources = [model.tokens.encode(text, "en", "pt") for text in TEXTS]
    for how in (How(), How(beams=4), How(beams=3, no_repeat=2)):
        alone = [whole(search(model.network, [s], "pt", how, model.most))[0] for s in sources]
        together = whole(search(model.network, sources, "pt", how, model.most))
        assert [f.tokens for f in together] == [f.tokens for f in alone]
        assert [f.score for f in together] == pytest.approx([f.score for f in alone], abs=1e-4)
        for found, source in zip(together, sources, strict=True):
            assert found.score == pytest.approx(rescored(model, source, "pt", found.tokens, found.whole), abs=1e-4)


def rescored(model: tm.Model, source: list[int], target: str, text: list[int], ended: bool) -> float:
    """Log-probability a token of a text, by one forward over all of it, without a cache."""
    net: Any = model.network
    tokens = [*text, net.end] if ended else text
    before = [*net.start(target), *tokens[:-1]]
    logits = net.model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([before])).logits[0]
    scores = torch.log_softmax(logits.float(), -1)[-len(tokens) :]
    return float(scores[torch.arange(len(tokens)), torch.tensor(tokens)].mean())


@pytest.mark.pure
def test_random_m2m100_is_told_both_languages(random_m2m100: Path) -> None:
    model = loaded(random_m2m100, "m2m100-418m")
    tokens: Any = model.tokens
    name = tokens.tokenizer.convert_ids_to_tokens
    for source, target, said in (("en", "pt", "__pt__"), ("fr", "ja", "__ja__"), ("nn", "jw", "__jv__")):
        ids = tokens.encode(TEXTS[0], source, target)
        assert name(ids[0]) == {"nn": "__no__"}.get(source, f"__{source}__") and name(ids[-1]) == "</s>"
        assert [name(i) for i in model.network.start(target)] == ["</s>", said]
    assert tokens.decode(tokens.encode(TEXTS[0], "en", "pt")) == TEXTS[0]
    assert model.knows("en", "pt") and not model.knows("en", "en") and not model.knows("en", "tlh")


@pytest.mark.pure
def test_random_marian_is_told_its_target(random_marian: Path) -> None:
    model = loaded(random_marian, "opus-mt-en-romance")
    tokens: Any = model.tokens
    assert tokens.tokenizer.convert_ids_to_tokens(tokens.encode("Who?", "en", "es")[0]) == ">>es<<"
    assert model.knows("en", "es") and not model.knows("es", "en")


@pytest.mark.pure
@pytest.mark.parametrize(("fixture", "name"), CASES)
def test_random_transformers_models_are_rehearsed(fixture: str, name: str, request: pytest.FixtureRequest) -> None:
    """At the full length, which their caches have from the start."""
    model = loaded(request.getfixturevalue(fixture), name)
    lengths = []
    net: Any = model.network
    step = net.step

    def watched(state: Any, *args: Any) -> Any:
        out = step(state, *args)
        lengths.append(state.cache.self_attention_cache.layers[0].keys.shape)
        return out

    net.step = watched
    assert sum(1 for _ in model.rehearse(5)) > 2
    assert max(shape[0] for shape in lengths) <= tm.MOST_ROWS and max(s[2] for s in lengths) >= model.most
    assert model.working_bytes(5) > 2 * 2 * max(s[0] * s[2] for s in lengths) * 32 * 4


@pytest.mark.pure
def test_a_folder_of_another_family_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="m2m100-418m: a model of the family llama"):
        loaded(folder, "m2m100-418m")

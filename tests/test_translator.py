"""`Translator`: text in, text out, with every option of decoding; what it does when memory does not suffice."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from rnnsearch import CheckpointError, RNNSearch
from rnnsearch.beam_search import beam_search
from rnnsearch.data import pad
from rnnsearch.decoding import DecodingOptions, read_dictionary
from rnnsearch.ensemble import Ensemble
from rnnsearch.examples.ray_translate import translated
from rnnsearch.pronunciation import MODEL_DIRECTORY
from rnnsearch.segmentation import Characters, SentencePiece, Words
from rnnsearch.translator import Translator
from small_model import SOURCE, TARGET, make_model

TEXTS = ["a b c", "f", "", "a b c d e", "c  a b", "?"]


def make_translator(**options) -> Translator:
    return Translator(make_model(dtype=torch.float32, scale=1.0), Words(), Words(), **options)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_translator().save(tmp_path / "model")
    return tmp_path / "model"


def test_the_shipped_model_reads_letters_and_writes_phonemes() -> None:
    translator = Translator(MODEL_DIRECTORY)
    assert translator("thought") == "TH AO T"
    assert translator(["cat", " ", "station's"]) == ["K AE T", "", "S T EY SH AH N Z"]


def test_texts_come_back_in_their_order_and_alone_as_together() -> None:
    translator = make_translator(batch_size=2, max_length=7)
    together = translator(TEXTS)
    assert together == [translator(text) for text in TEXTS] and together[2] == ""
    assert len(set(together)) > 3


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"beam_size": 1},
        {"beam_size": 7, "n_best": 4},
        {"max_length": 4},
        {"max_length_factor": 5.5},
        {"min_length": 6},
        {"length_penalty": "average"},
        {"length_penalty": "wu", "alpha": 1.2},
        {"coverage_penalty": 0.7},
        {"no_repeat_ngram_size": 1},
    ],
    ids=str,
)
def test_every_option_of_beam_search_reaches_it(options: dict) -> None:
    translator = make_translator(**options)
    model = make_model(dtype=torch.float32, scale=1.0)
    found = translator.hypotheses(TEXTS)
    for text, translations in zip(TEXTS, found, strict=True):
        if not text:
            assert translations == []
            continue
        with torch.inference_mode():
            memory, state = model.encode(*pad([SOURCE.encode(text.split())], 0))
            wanted = beam_search(
                model.step, state, memory, bos_id=1, eos_id=2, ban_ids=(0, 1, 3), **{"beam_size": 5, **options}
            )
        count = int((wanted.lengths > 0).sum())
        assert len(translations) == count
        for rank, entry in enumerate(translations):
            length = int(wanted.lengths[0, rank])
            assert entry.tokens == TARGET.decode(wanted.tokens[0, rank, :length].tolist())
            assert entry.score == pytest.approx(float(wanted.scores[0, rank]), abs=1e-5)
            assert entry.finished == bool(wanted.finished[0, rank])
            assert wanted.attn_weights is not None
            torch.testing.assert_close(entry.attn_weights, wanted.attn_weights[0, rank, :length])


def test_options_of_one_call_go_before_the_translators_own() -> None:
    translator = make_translator(max_length=6)
    assert [len(found) for found in translator.hypotheses(["a b"], n_best=3)] == [3]
    longer = translator.hypotheses(["a b"], min_length=9, max_length=9)[0][0]
    assert len(longer.token_scores) == 9
    assert len(translator.hypotheses(["a b"])[0][0].token_scores) <= 6


def test_banned_tokens_never_come() -> None:
    first = make_translator(max_length=6).hypotheses(TEXTS)
    common = {token for found in first for entry in found for token in entry.tokens}
    assert "y" in common
    for found in make_translator(max_length=6, ban=("y", "u"), n_best=3).hypotheses(TEXTS):
        assert not {"y", "u", "<unk>"} & {token for entry in found for token in entry.tokens}


def unknown_lover() -> RNNSearch:
    model = make_model(dtype=torch.float32, scale=1.0)
    with torch.no_grad():
        model.output.bias[3] = 9.0
    return model


def test_an_unknown_word_is_looked_up_or_copied_by_what_it_attended_to(tmp_path: Path) -> None:
    dictionary = tmp_path / "words.tsv"
    dictionary.write_text("fifth\tFünfte\nb\tBE\nb\tlater\n", encoding="utf-8")
    make = partial(Translator, unknown_lover(), Words(), Words(), max_length=5, min_length=5)
    text = "fifth a b ada"
    (raw, *_) = make(unknown="keep").hypotheses([text])[0]
    assert raw.tokens.count("<unk>") >= 2
    attended = [text.split()[int(weights[:4].argmax())] for weights in raw.attn_weights]
    known = {"fifth": "Fünfte", "b": "BE"}
    for options, wanted in (
        ({"unknown": "replace"}, attended),
        ({"unknown": "replace", "dictionary": dictionary}, [known.get(word, word) for word in attended]),
        (
            {"unknown": "replace", "dictionary": {"a": "x", "ada": "Ada"}},
            [{"a": "x", "ada": "Ada"}.get(w, w) for w in attended],
        ),
    ):
        (found, *_) = make(**options).hypotheses([text])[0]
        pairs = zip(raw.tokens, found.tokens, wanted, strict=False)
        assert all(other == (word if token == "<unk>" else token) for token, other, word in pairs)
    assert "<unk>" not in make()(text)


def test_a_dictionary_with_a_bad_line_is_refused_by_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    for content, message in (
        (b"a\tb\nc\n", r"words.tsv, line 2: a source token, a tab and a target token are wanted; got 'c'"),
        (b"a\tb\tc\n", r"line 1: .*got 'a\\tb\\tc'"),
        (b"a\tb\n\xff\tc\n", r"line 2: not UTF-8 \(invalid start byte\)"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_dictionary(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_dictionary(tmp_path / "none.tsv")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 3}, "`top_k` is for `search` 'sample' only; `search` is 'beam'"),
        ({"search": "sample", "coverage_penalty": 0.1}, "`coverage_penalty` is for `search` 'beam' only"),
        ({"dictionary": {}}, "`dictionary` needs `unknown` to be 'replace'; it is 'ban'"),
        ({"beam_size": 0}, "`beam_size` must be at least 1; got 0"),
        ({"n_best": 6}, "`n_best` must be at most `beam_size` = 5; got 6"),
        ({"ban": ("no",)}, "`ban` must be tokens of the model's target vocabulary, which has no 'no'"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(options: dict, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make_translator(**options)


def test_a_batch_of_columns_gets_one_more() -> None:
    translator = make_translator(max_length=7)
    batch = {"source": np.array(["a b c", None, "f"], dtype=object), "id": np.array([7, 8, 9])}
    done = translator(batch)
    assert list(done) == ["source", "id", "translation"] and done["id"] is batch["id"]
    assert isinstance(done["translation"], np.ndarray) and done["translation"].dtype == object
    assert done["translation"].tolist() == [translator("a b c"), "", translator("f")]
    named = make_translator(max_length=7, source_column="de", target_column="en")({"de": np.array(["f"])})
    assert named["en"].tolist() == [translator("f")]
    with pytest.raises(ValueError, match=r"must have a column 'source'; it has \['text'\]"):
        translator({"text": ["a"]})


def test_the_ray_example_hands_ray_the_class_and_what_it_is_made_of(directory: Path) -> None:
    """What Ray does with them, in this process: the class is called with its arguments, the object with batches, and
    its ``__call__`` runs in one thread that others wait for."""

    class Dataset:
        def map_batches(self, cls, *, fn_constructor_args, fn_constructor_kwargs, batch_size, concurrency, num_gpus):
            assert (batch_size, concurrency, num_gpus) == (256, 2, 0)

            class InOneThread(cls):
                def __call__(self, batch):
                    return thread.submit(super().__call__, batch).result(timeout=60)

            return InOneThread(*fn_constructor_args, **fn_constructor_kwargs)({"text": np.array(TEXTS, dtype=object)})

    with ThreadPoolExecutor(1) as thread:
        done = translated(Dataset(), str(directory), processes=2, max_length=7)
    assert done["translation"].tolist() == make_translator(max_length=7)(TEXTS)


def test_ray_translates(directory: Path) -> None:
    ray = pytest.importorskip("ray", reason="ray is not installed")
    ray.init(num_cpus=4, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    try:
        dataset = ray.data.from_items([{"text": text} for text in TEXTS])
        rows = translated(dataset, str(directory), max_length=7).take_all()
    finally:
        ray.shutdown()
    found = {row["text"]: row["translation"] for row in rows}
    assert found == dict(zip(TEXTS, make_translator(max_length=7)(TEXTS), strict=True))


def small_memory(model: RNNSearch, most: int, sizes: list[int]) -> None:
    """More than ``most`` sources at a time do not fit: torch is asked for more than there is and says so itself."""
    encode = model.encode

    def limited(source, source_lengths=None):
        sizes.append(len(source))
        if len(source) > most:
            torch.empty(1 << 60, dtype=torch.uint8)
        return encode(source, source_lengths)

    model.encode = limited  # type: ignore[method-assign]


def test_where_memory_does_not_suffice_half_as_many_go_on_and_it_is_said() -> None:
    said: list[str] = []
    sizes: list[int] = []
    translator = make_translator(max_length=7, say=said.append)
    texts = ["a b c", "f", "b", "c d", "e f a b", "a"] * 3
    wanted = make_translator(max_length=7)(texts)
    small_memory(translator.model, 5, sizes)  # type: ignore[arg-type]
    assert translator(texts) == wanted
    assert sizes == [18, 9, 5, 5, 5, 3]
    assert said == [f"memory does not suffice for that many texts at a time; going on with {size}" for size in (9, 5)]
    sizes.clear()
    assert translator(texts) == wanted and max(sizes) == 5  # what did not fit is not tried again
    warning = make_translator(max_length=7)
    small_memory(warning.model, 5, sizes)  # type: ignore[arg-type]
    with pytest.warns(RuntimeWarning, match="memory does not suffice"):
        assert warning(texts) == wanted


def test_a_text_that_does_not_fit_alone_is_an_error_that_says_how_long_it_is() -> None:
    translator = make_translator(say=lambda text: None)
    small_memory(translator.model, 0, [])  # type: ignore[arg-type]
    with pytest.raises(MemoryError, match="memory does not suffice for a text of 3 tokens alone"):
        translator(["a b c", "f"])


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    translator = make_translator()

    def broken(source, source_lengths=None):
        raise RuntimeError("broken")

    translator.model.encode = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="broken"):
        translator("a")


def test_several_directories_are_an_ensemble(directory: Path, tmp_path: Path) -> None:
    other = make_model(dtype=torch.float32, scale=0.7)
    Translator(other, Words(), Words()).save(tmp_path / "other")
    translator = Translator([directory, tmp_path / "other"], max_length=6)
    assert isinstance(translator.model, Ensemble)
    models = [RNNSearch.from_pretrained(directory), RNNSearch.from_pretrained(tmp_path / "other")]
    wanted = Ensemble(models).translate([["a", "b"]], beam_size=5, max_length=6)
    assert translator("a b") == " ".join(wanted[0][0].tokens)
    with pytest.raises(ValueError, match="an ensemble is not saved as one"):
        translator.save(tmp_path / "both")
    Translator(other, Characters(), Words()).save(tmp_path / "characters")
    with pytest.raises(ValueError, match=r"must split text alike; .*characters and .*model differ on the source side"):
        Translator([directory, tmp_path / "characters"])


def test_sentencepiece_models_split_alike_only_if_they_are_the_same(tmp_path: Path) -> None:
    lines = ["abc cab bac", "fade deaf", "cafe face"] * 3
    pieces = [SentencePiece.learn(lines, size) for size in (14, 16)]
    model = make_model(dtype=torch.float32)
    for number, piece in enumerate(pieces):
        Translator(model, piece, piece).save(tmp_path / str(number))
    Translator([tmp_path / "0", tmp_path / "0"])
    with pytest.raises(ValueError, match="differ on the source side"):
        Translator([tmp_path / "0", tmp_path / "1"])


def test_what_it_is_made_of_is_checked(directory: Path) -> None:
    with pytest.raises(ValueError, match="needs `source` and `target`"):
        Translator(make_model())
    with pytest.raises(ValueError, match="both vocabularies"):
        Translator(RNNSearch(make_model().config), Words(), Words())
    with pytest.raises(ValueError, match="`backend` must be one of"):
        Translator(directory, backend="nonsense")
    with pytest.raises(CheckpointError, match="nowhere is not a directory"):
        Translator("nowhere")
    (directory / "segmentation.json").unlink()
    with pytest.raises(CheckpointError, match=r"segmentation\.json cannot be read"):
        Translator(directory)


def test_weights_take_the_dtype_and_place_that_is_asked_for(directory: Path) -> None:
    translator = Translator(directory, dtype=torch.bfloat16, device="cpu", max_length=5)
    assert {parameter.dtype for parameter in translator.model.parameters()} == {torch.bfloat16}
    assert len(translator(["a b"])) == 1
    given = make_model(dtype=torch.float64)
    assert next(Translator(given, Words(), Words()).model.parameters()).dtype == torch.float64


def test_the_options_have_the_names_and_defaults_of_the_command(directory: Path) -> None:
    assert Translator(directory).options == DecodingOptions()
    assert Translator.from_pretrained(directory, beam_size=3).options == DecodingOptions(beam_size=3)

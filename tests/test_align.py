"""`rnnsearch align`: the weights are those of decoding, whatever the batch, and what is written of them is true."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from rnnsearch import copies
from rnnsearch.alignment import Alignment, align_pairs, in_words, of_translation
from rnnsearch.cli import main
from rnnsearch.segmentation import Characters, SentencePiece, Words
from rnnsearch.translator import Translator
from small_model import make_model
from tolerances import EXACT

PAIRS = [("a b c d", "u v"), ("f", "z y x w v u"), ("b q a", "u q z"), ("e f", "w")]


@pytest.fixture
def translator() -> Translator:
    return Translator(make_model(), Words(), Words())


def test_a_forced_alignment_is_that_of_decoding_step_by_step_in_any_batch(translator):
    model = translator.model
    alone, together = (align_pairs(translator, PAIRS, batch_size=size) for size in (1, 3))
    for pair, one, other in zip(PAIRS, alone, together, strict=True):
        source, target = translator.encode(*pair)
        with torch.no_grad():
            memory, state = model.encode(torch.tensor([source]))
            index = torch.zeros(1, dtype=torch.long)
            score, rows = 0.0, []
            for token, following in zip([model.config.bos_id, *target[:-1]], target, strict=True):
                topk, state, weights = model.step(torch.tensor([token]), state, memory, index)
                values, ids = topk(len(model.target_vocabulary), None)
                score += float(values[0, ids[0].tolist().index(following)])
                rows.append(weights[0])
        assert one.source == pair[0].split() and one.target == pair[1].split()
        torch.testing.assert_close(one.attn_weights, torch.stack(rows), **EXACT)
        assert one.score == pytest.approx(score, abs=1e-5)  # the search's scores are float32
        torch.testing.assert_close(other.attn_weights, one.attn_weights, **EXACT)
        assert other.score == pytest.approx(one.score, abs=1e-9)


def test_dropout_is_off_and_training_goes_on(translator):
    model = translator.model
    for module in (model.embedding_dropout, model.memory_dropout, model.readout_dropout):
        module.p = 0.5
    (quiet,) = align_pairs(translator, PAIRS[:1])
    (training,) = align_pairs(Translator(model.train(), Words(), Words()), PAIRS[:1])
    assert torch.equal(training.attn_weights, quiet.attn_weights) and training.score == quiet.score
    assert model.training and model.memory_dropout.training


def test_a_translation_is_aligned_as_if_it_had_been_given(translator):
    sources = ["a b", "c d e", "f", "b a f c", "d"]
    finished = 0
    for source, found in zip(sources, translator.hypotheses(sources, beam_size=3, n_best=3), strict=True):
        for translation in found:
            searched = of_translation(translator, source, translation)
            (forced,) = align_pairs(translator, [(source, translator.text(translation))])
            assert searched.target == forced.target
            rows = len(searched.attn_weights)
            torch.testing.assert_close(searched.attn_weights, forced.attn_weights[:rows], **EXACT)
            if rows == len(forced.attn_weights):  # it was not cut before its end
                finished += 1
                assert searched.score == pytest.approx(forced.score, abs=1e-5)
    assert finished > 2


def test_words_have_the_sum_over_the_source_and_the_mean_over_the_target():
    lines = ["ein grosser Hund", "ein kleiner Hund", "Hunde und Katzen"] * 3
    pieces = SentencePiece.learn(lines, 26)
    source, target = pieces.split("grosser Hund"), list(" ab c".strip())
    assert len(source) > 2
    weights = torch.softmax(torch.randn(len(target) + 1, len(source) + 1, dtype=torch.float64), dim=1)
    found = in_words(Alignment(source, target, weights, -1.5), pieces, Characters())
    assert (found.source, found.target, found.score) == (["grosser", "Hund"], ["ab", "c"], -1.5)
    first = next(place for place, piece in enumerate(source) if place and piece.startswith("▁"))
    columns = [weights[:, :first].sum(1), weights[:, first:-1].sum(1), weights[:, -1]]
    summed = torch.stack(columns, 1)
    wanted = torch.stack([summed[:3].mean(0), summed[3], summed[4]])
    torch.testing.assert_close(found.attn_weights, wanted, **EXACT)
    torch.testing.assert_close(found.attn_weights.sum(1), torch.ones(3, dtype=torch.float64), **EXACT)


@pytest.mark.parametrize("tokens", [[], ["a"], [*"ab c  d"], [" ", "a", " "]])
def test_the_words_of_characters_are_all_of_them(tokens):
    words = Characters().words(tokens)
    assert [place for word in words for place in word] == list(range(len(tokens)))
    assert [Characters().join([tokens[place] for place in word]).strip() for word in words] == "".join(tokens).split()


def test_what_attended_to_the_end_has_no_link():
    weights = torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.3, 0.5], [0.1, 0.7, 0.2], [0.0, 0.0, 1.0]])
    alignment = Alignment(["a", "b"], ["u", "v", "w"], weights, 0.0)
    assert alignment.links() == [(0, 0), (1, 2)] and alignment.pharaoh() == "0-0 1-2"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, translator: Translator) -> Path:
    """A model, and the pairs in two files and in one."""
    monkeypatch.chdir(tmp_path)
    translator.model.float()
    translator.save(tmp_path / "model")
    Path("source").write_text("".join(f"{source}\n" for source, _ in PAIRS))
    Path("target").write_text("".join(f"{target}\n" for _, target in PAIRS))
    Path("pairs.tsv").write_text("".join("\t".join(pair) + "\n" for pair in PAIRS))
    return tmp_path


def align(*options: str) -> int:
    return main(["align", "--model", "model", *options])


def test_pairs_are_written_as_links_and_json(files, translator, capsys):
    wanted = align_pairs(translator, PAIRS)
    assert align("--source", "source", "--target", "target", "--json", "out.jsonl") == 0
    two_files = capsys.readouterr().out
    assert two_files.splitlines() == [alignment.pharaoh() for alignment in wanted]
    records = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    for record, alignment in zip(records, wanted, strict=True):
        assert (record["source"], record["target"]) == (alignment.source, alignment.target)
        assert [tuple(link) for link in record["links"]] == alignment.links()
        assert record["score"] == pytest.approx(alignment.score, abs=1e-4)
        torch.testing.assert_close(torch.tensor(record["attn_weights"]), alignment.attn_weights, rtol=0, atol=6e-5)
    assert align("--source", "pairs.tsv") == 0 and capsys.readouterr().out == two_files
    assert align("--source", "pairs.tsv", "--lines", "2-3", "--batch-size", "1") == 0
    assert capsys.readouterr().out.splitlines() == two_files.splitlines()[1:3]
    assert align(*PAIRS[2]) == 0 and capsys.readouterr().out.splitlines() == two_files.splitlines()[2:3]


def test_translations_are_aligned_with_what_they_translate(files, translator, capsys):
    assert align("--source", "source", "--beam-size", "2", "--json", "out.jsonl") == 0
    records = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    found = Translator.from_pretrained("model", beam_size=2).hypotheses([source for source, _ in PAIRS])
    assert [record["target"] for record in records] == [entry[0].tokens for entry in found]
    for record, entry in zip(records, found, strict=True):
        torch.testing.assert_close(torch.tensor(record["attn_weights"]), entry[0].attn_weights, rtol=0, atol=6e-5)
    capsys.readouterr()
    assert align("a b", "--beam-size", "2") == 0
    said = capsys.readouterr()
    assert said.err.strip() == Translator.from_pretrained("model", beam_size=2)(["a b"])[0]
    assert len(said.out.splitlines()) == 1


def test_heat_maps_are_drawn_of_one_pair_or_of_each(files, capsys):
    pytest.importorskip("matplotlib")
    assert align("a b $c$ d", "u v", "--plot", "one.png") == 0
    assert Path("one.png").read_bytes().startswith(b"\x89PNG")
    assert align("--source", "pairs.tsv", "--lines", "1-2", "--plot", "each.svg") == 0
    assert sorted(path.name for path in Path().glob("*.svg")) == ["each-1.svg", "each-2.svg"]
    drawn = Path("each-2.svg").read_text(encoding="utf-8")
    assert all(f">{word}</text>" in drawn for word in ("f", "z", "y", "end"))


def test_the_heat_map_has_a_cell_for_each_weight_in_its_grey(files):
    """Black is 0 and white 1, sources from left to right, targets from top to bottom."""
    pyplot = pytest.importorskip("matplotlib.image")
    from rnnsearch.plot import plot_alignment

    weights = torch.tensor([[0.0, 1.0, 0.5], [0.25, 0.0, 0.75]])
    plot_alignment(Path("grey.png"), ["a", "b"], ["u"], weights)
    grey = torch.from_numpy(pyplot.imread("grey.png")[..., 0].copy())
    # The heat map is the one block of the picture that holds no white background: its corner cells are black.
    dark = (grey < 0.01).float()
    rows, columns = (dark.sum(dim) > 20 for dim in (1, 0))
    top, left = int(rows.nonzero()[0]), int(columns.nonzero()[0])
    size = int((dark[top + 5, left:] == 0).nonzero()[0])
    centres = grey[top + size // 2 :: size, left + size // 2 :: size][:2, :3]
    torch.testing.assert_close(centres, weights, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "pairs.tsv", "--lines", "4-9"], "pairs.tsv has 4 lines; line 9 is asked for"),
        (["--source", "nowhere"], "nowhere cannot be read"),
        (["--source", "source", "--target", "short"], "source has 4 lines and short has 1"),
        (["--source", "gap"], "gap, line 4: empty"),
        (["--source", "gap", "--lines", "3-4"], "gap, line 4: empty"),
        (["--source", "source", "--target", "gap"], "gap, line 4: empty"),
        (["a", " "], "text 2 is empty"),
        (["--source", "pairs.tsv", "--copies", "5"], "has no pair with a number or a name that stands once on either"),
        ([], "give TEXT or --source, one of them"),
        (["a", "--source", "pairs.tsv"], "give TEXT or --source, one of them"),
        (["a", "u", "w"], "TEXT is one text and its translation; got 3"),
        (["a", "--lines", "1"], "--target and --lines belong to --source"),
        (["--source", "source", "--copies", "5"], "--copies needs both sides"),
        (["--source", "pairs.tsv", "--copies", "-5"], "--copies must be at least 0; got -5"),
        (["--source", "pairs.tsv", "--construct"], "--construct says how --copies gets its pairs"),
        *(
            (["--source", "pairs.tsv", "--lines", lines], "must be a line or first-last")
            for lines in ("3-2", "x", "2-")
        ),
        (["a", "u", "--model", "model"], "give one --model"),
        (["a", "u", "--beam-size", "3"], "--beam_size says how the model translates; here the translation is given"),
        (["a", "--plot", "x"], "--plot must end in .png, .svg or .pdf; got x"),
        (["a", "--plot", "no/such/x.png"], "--plot must be a file in a directory that exists"),
        (["a", "--json", "no/such/x"], "--json must be a file in a directory that exists"),
        (["--source", "source", "--html", "source"], "--html must be another file than --source"),
    ],
)
def test_what_cannot_be_aligned_is_named(files, options, message, capsys):
    Path("short").write_text("u\n")
    Path("gap").write_text("a\nb\nc\n\n")
    assert align(*options) == 1
    err = capsys.readouterr().err
    assert message in err and err.startswith("rnnsearch: ") and err.count("\n") == 1


def test_what_could_not_be_written_is_said_before_a_model_is_read(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for options, message in (
        (["--json", "no/such"], "--json must be a file in a directory that exists"),
        (["--html", "."], "--html must be a file in a directory that exists"),
        (["--plot", "x.xyz"], "--plot must end in"),
        (["--html", "one", "--json", "./one"], "--json must be another file than --html; both are ./one"),
    ):
        assert main(["align", "--model", "nowhere", "a", *options]) == 1
        assert message in capsys.readouterr().err


def test_a_model_translates_as_it_is_asked_to_before_it_aligns(files, capsys):
    given = {"search": "sample", "temperature": 1.5, "seed": 4, "max_length": 5}
    for options, translator in (
        ([f"--{name}={value}" for name, value in given.items()], Translator("model", **given)),
        (["--model", "model", "--ban=z", "--no_repeat_ngram_size=1"], None),
    ):
        translator = translator or Translator(["model", "model"], ban=("z",), no_repeat_ngram_size=1)
        assert align("--source", "source", *options, "--json", "out.jsonl") == 0
        records = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        found = translator.hypotheses([source for source, _ in PAIRS])
        assert [record["target"] for record in records] == [entry[0].tokens for entry in found]


@pytest.mark.parametrize(
    ("source", "target", "found"),
    [
        ("I saw Tom .", "J'ai vu Tom.", [(2, 2)]),
        ("Call 555-1234, now", "Appelle le « 555-1234 » maintenant", [(1, 3)]),
        ("Tom came", "Tom est venu", []),  # may be the capital letter of the first word
        ("2 cats", "2 chats", [(0, 0)]),
        ("Tom, Tom!", "Tom !", []),
        ("yes", "oui 3", []),
    ],
)
def test_a_copy_is_a_number_or_name_that_stands_once_on_either_side(source, target, found):
    assert copies.copies(source.split(), target.split()) == found


def test_constructed_pairs_have_another_number_or_name_in_the_same_place():
    pairs = [("I saw Tom.", "J'ai vu Tom."), ("at 10:30", "à 10:30"), ("see Mary", "vois Mary"), ("a", "b")]
    made = copies.construct(pairs, 30)
    assert len(made) == 30 and made == copies.construct(pairs, 30) != copies.construct(pairs, 30, seed=2)
    assert set(made[0::3]) == {("I saw Mary.", "J'ai vu Mary.")} and set(made[2::3]) == {("see Tom", "vois Tom")}
    for source, target in made[1::3]:
        (copy,) = copies.copies(source.split(), target.split())
        assert copy == (1, 1) and len(source) == len("at 10:30")
    assert len(set(made[1::3])) > 5
    with pytest.raises(ValueError, match="no other name to take the place of Tom"):
        copies.construct(pairs[:1], 1)


def test_a_constructed_number_is_none_that_the_sentences_have():
    pair = ("7 3 4 and 2 or 8 9", "2")
    made = copies.construct([pair], 20)
    assert {target for _, target in made} == {"5", "6"}
    assert all(len(copies.copies(*map(str.split, constructed))) == 1 for constructed in made)
    with pytest.raises(ValueError, match="no other number to take the place of 2"):
        copies.construct([("2 3 4 5 6 7 8 9", "2")], 1)


def test_attention_without_a_point_is_not_on_the_copy_for_its_many_tokens():
    """The copied word has two pieces of four; the first token that is attended to most is another's."""
    pieces = SentencePiece.learn(["in Gera", "in Genf", "aus Gera", "an Genf"] * 2, 20)
    source, target = pieces.split("in Gera"), pieces.split("an Gera")
    assert len(source) >= 3 and pieces.words(source)[1].stop - pieces.words(source)[1].start >= 2
    weights = torch.full((len(target) + 1, len(source) + 1), 1 / (len(source) + 1))
    even = Alignment(source, target, weights, 0.0)
    assert copies.measure([even], pieces, pieces) == copies.Found(copies=1, attended=0)
    pointed = weights.clone()
    pointed[pieces.words(target)[1].start, pieces.words(source)[1].stop - 1] += 0.1
    found = copies.measure([even, Alignment(source, target, pointed, 0.0)], pieces, pieces)
    assert found == copies.Found(copies=2, attended=1) and found.share == 0.5


def test_a_full_stop_behind_a_copied_name_is_no_part_of_it_and_may_attend_elsewhere():
    pieces = SentencePiece.learn(["in Gera .", "an Gera ."] * 4, 20)
    source, target = pieces.split("in Gera."), pieces.split("an Gera.")
    assert source[-1] == target[-1] == "."
    weights = torch.full((len(target) + 1, len(source) + 1), 0.01)
    name = pieces.words(source)[1]
    weights[pieces.words(target)[1].start : -2, name.start] = 0.5
    weights[-2, -1] = 0.9  # the full stop attends to the end
    assert copies.measure([Alignment(source, target, weights, 0.0)], pieces, pieces).attended == 1
    weights[pieces.words(target)[1].start : -2, len(source) - 1] = 0.6  # the name attends to the full stop
    assert copies.measure([Alignment(source, target, weights, 0.0)], pieces, pieces).attended == 0


def test_a_small_trained_model_attends_to_what_it_copies(tmp_path, capsys):
    """A language of made-up words whose translation turns their order round; numbers and names are copied."""
    fillers = [consonant + vowel for consonant in "bdg" for vowel in "aeio"]
    names = ["Anna", "Berit", "Carla", "Dora", "Emil", "Fritz", "Gerda", "Hanno"]
    generator = random.Random(1)

    def pair() -> str:
        words = generator.choices(fillers, k=generator.randint(2, 5))
        copied = generator.choice(names) if generator.random() < 0.5 else "".join(generator.choices("23456789", k=2))
        words.insert(generator.randint(0, len(words)), copied)
        return f"{' '.join(words)}\t{' '.join(word if word == copied else word + 'n' for word in words[::-1])}\n"

    for name, count in (("train", 3000), ("held_out", 60)):
        (tmp_path / f"{name}.tsv").write_text("".join(pair() for _ in range(count)))
    shared = [f"--data.source={tmp_path}/train.tsv", f"--data.dev_source={tmp_path}/held_out.tsv"]
    shared += [f"--model.{part}_size=32" for part in ("embedding", "encoder", "hidden", "attention", "readout")]
    shared += ["--batch.size=32", "--optimizer.learning_rate=0.008", "--run.epochs=0", "--run.device=cpu"]
    found = {}
    for updates in (1, 300):
        run = tmp_path / str(updates)
        assert main(["train", *shared, f"--run.updates={updates}", f"--run.directory={run}", "--run.samples=0"]) == 0
        capsys.readouterr()
        options = ["--source", str(tmp_path / "held_out.tsv"), "--copies", "200", "--construct"]
        assert main(["align", "--model", str(run / "best"), *options]) == 0
        said = capsys.readouterr().out.strip()
        assert said.startswith("copied words that attended most to their source: ") and " of 200 (" in said
        found[updates] = int(said.split(": ")[1].split()[0])
    assert found[300] >= 0.9 * 200 > 0.5 * 200 > found[1]

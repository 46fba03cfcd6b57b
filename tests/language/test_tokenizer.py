"""The tokenizer: equal ids for equal prompts, room for any text, the end token always there."""

import pickle
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from sora_jax.language import tokenizer as tokenizer_module
from sora_jax.language.tokenizer import Tokenizer, train

COLOURS = ("red", "green", "blue", "yellow", "white")
SHAPES = ("circle", "square", "triangle", "star")
MOVES = ("moves right", "moves left", "falls down", "spins slowly", "bounces")
CAPTIONS = [f"A {c} {s} {m}." for c in COLOURS for s in SHAPES for m in MOVES]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return train(CAPTIONS, 400)


def unigram(special: list[str], path: Path) -> Path:
    """A tokenizer.json built as UMT5's is: SentencePiece unigram, template, own truncation."""
    pieces = [*special, "▁", "▁a", "▁red", "▁circle", *"▁acdeilmnorstv<>/s"]
    model = tokenizers.Tokenizer(
        models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], unk_id=2)
    )
    model.pre_tokenizer = pre_tokenizers.Metaspace()
    model.decoder = decoders.Metaspace()
    model.add_special_tokens(special)
    if "</s>" in special:
        model.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", special.index("</s>"))]
        )
    model.enable_truncation(3)
    model.enable_padding(length=9)
    model.save(str(path))
    return path


def test_ids_then_end_then_zeros(trained):
    ids = trained.encode("a red circle", 16)
    n = trained.count("a red circle")
    assert ids.dtype == np.int32 and ids.shape == (16,)
    assert (trained.pad_id, trained.end_id) == (0, 1)
    assert ids[n - 1] == 1 and not ids[n:].any() and (ids[: n - 1] > 1).all()


@pytest.mark.parametrize("empty", ["", "  \n", "...", "&nbsp;"])
def test_empty_prompt_is_the_end_token_alone(trained, empty):
    np.testing.assert_array_equal(trained.encode(empty, 4), [1, 0, 0, 0])
    assert trained.count(empty) == 1


@pytest.mark.parametrize(
    "variant",
    ["A Red Circle", "a red circle.", " a  red\tcircle ", "a red circle", "a red circle !",
     "ａ ｒｅｄ ｃｉｒｃｌｅ", "a red&nbsp;circle"],
)  # fmt: skip
def test_same_prompt_same_ids(trained, variant):
    np.testing.assert_array_equal(trained.encode(variant, 16), trained.encode("a red circle", 16))


def test_punctuation_inside_keeps_the_words_whole(trained):
    plain, comma = trained.encode("red circle", 16), trained.encode("red, circle", 16)
    assert set(plain) < set(comma) and len(set(comma)) == len(set(plain)) + 1


def test_training_learns_words(trained):
    assert trained.count("a red circle") == 4
    assert 258 < trained.vocabulary <= 400


@pytest.mark.parametrize("text", ["naïve café", "日本の夜 🙂", "\x00\x07", "зима 42%", "🏳️‍🌈"])
def test_any_text_survives_the_round_trip(trained, text):
    ids = trained.encode(text, 64)
    assert ids.max() < trained.vocabulary
    assert trained.decode(ids) == text


def test_undecodable_bytes_of_a_shell_are_encoded(trained):
    assert trained.decode(trained.encode("red \udcff circle", 32)) == "red ? circle"


def test_special_tokens_cannot_be_typed(trained):
    for tokenizer in (trained, pickle.loads(pickle.dumps(trained))):
        ids = tokenizer.encode("a <pad> red </s> circle", 64)
        n = tokenizer.count("a <pad> red </s> circle")
        assert (ids[: n - 1] > 1).all() and ids[n - 1] == 1


def test_too_long_keeps_the_end_and_warns_once(trained):
    tokenizer = pickle.loads(pickle.dumps(trained))
    text = "a red circle moves right " * 4
    n = tokenizer.count(text)
    with pytest.warns(UserWarning, match=rf"{n} tokens.* 5"):
        ids = tokenizer.encode(text, 5)
    np.testing.assert_array_equal(ids, [*tokenizer.encode(text, 64)[:4], 1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokenizer.encode(text, 6)


def test_one_token_too_many_warns(trained):
    tokenizer = pickle.loads(pickle.dumps(trained))
    with pytest.warns(UserWarning, match="4 tokens"):
        tokenizer.encode("a red circle", 3)


def test_a_word_is_the_same_token_wherever_it_stands(trained):
    assert trained.encode("red circle", 8)[0] == trained.encode("a red circle", 8)[1]


def test_a_text_that_just_fits_is_whole_and_silent(trained):
    tokenizer = pickle.loads(pickle.dumps(trained))
    n = tokenizer.count("a red circle moves right")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ids = tokenizer.encode("a red circle moves right", n)
    np.testing.assert_array_equal(ids, tokenizer.encode("a red circle moves right", n + 3)[:n])


def test_training_is_deterministic_in_any_order(tmp_path):
    shuffled = random.Random(0).sample(CAPTIONS, len(CAPTIONS))
    for name, texts in (("a", CAPTIONS), ("b", CAPTIONS), ("c", iter(shuffled))):
        train(texts, 330).save(tmp_path / name)
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_saved_and_pickled_copies_agree(trained, tmp_path):
    path = tmp_path / "folder" / "tokenizer.json"
    trained.save(path)
    text = "A yellow star, falling: naïve 🙂"
    for copy in (Tokenizer.from_file(path), pickle.loads(pickle.dumps(trained))):
        np.testing.assert_array_equal(copy.encode(text, 40), trained.encode(text, 40))
        assert copy.vocabulary == trained.vocabulary


def test_reads_a_tokenizer_shaped_like_umt5s(tmp_path):
    path = unigram(["<pad>", "</s>", "<unk>"], tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    assert (tokenizer.pad_id, tokenizer.end_id) == (0, 1)
    # The file's own truncation (3) and padding (9) have no say.
    ids = tokenizer.encode("a red circle a", 7)
    red = tokenizer.encode("red", 2)[0]
    np.testing.assert_array_equal(ids[4:], [1, 0, 0])
    assert ids[0] == ids[3] and ids[1] == red and (ids[:4] > 2).all()
    assert tokenizer.decode(ids) == "a red circle a"
    np.testing.assert_array_equal(tokenizer.encode("", 3), [1, 0, 0])


def test_the_end_id_comes_from_the_file(tmp_path):
    path = unigram(["<pad>", "<s>", "<unk>", "</s>"], tmp_path / "tokenizer.json")
    np.testing.assert_array_equal(Tokenizer.from_file(path).encode("", 3), [3, 0, 0])


@pytest.mark.parametrize(
    "special, message",
    [
        (["<s>", "</s>", "<unk>"], r"no padding token.*<unk>"),
        (["<pad>", "<s>", "<unk>"], r"no end token.*<unk>"),
        (["</s>", "<pad>", "<unk>"], r"pads with id 1.*masks id 0"),
    ],
)
def test_unfit_tokenizers_are_refused(tmp_path, special, message):
    path = unigram(special, tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=rf"tokenizer\.json.*{message}"):
        Tokenizer.from_file(path)


def test_errors_name_the_value_and_the_remedy(trained, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.json; give the path"):
        Tokenizer.from_file(tmp_path / "missing.json")
    (tmp_path / "broken.json").write_text("{]")
    with pytest.raises(ValueError, match=r"broken\.json is not a tokenizer\.json"):
        Tokenizer.from_file(tmp_path / "broken.json")
    with pytest.raises(ValueError, match=r"vocabulary of 257.*at least 258"):
        train(CAPTIONS, 257)
    with pytest.raises(ValueError, match="no text to train"):
        train(["", " "], 300)
    with pytest.raises(ValueError, match="one string 'a red circle'"):
        train("a red circle", 300)
    with pytest.raises(ValueError, match="this is None"):
        trained.encode(None, 4)
    with pytest.raises(ValueError, match="length is 0"):
        trained.encode("a", 0)


def test_data_workers_need_no_jax():
    # The file alone: what the package's facade imports is another matter.
    script = (
        "import importlib.util, sys\n"
        "spec = importlib.util.spec_from_file_location('tokenizer', sys.argv[1])\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
        "sys.exit('jax' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", script, tokenizer_module.__file__], check=True)

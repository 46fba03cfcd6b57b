"""Text to token ids and back: a small byte-level BPE trained here, or an open tokenizer.json.

Every sequence ends in the end token and is padded with id 0, so the empty text is one token long
and attention over it never has nothing to look at. Free of jax: data workers tokenize too.
"""

import html
import json
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

# What the published tokenizers call their padding and end tokens; the first of each is ours.
PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>")
END_NAMES = ("</s>", "<eos>", "[EOS]", "<|endoftext|>")
# Padding, end and the 256 bytes.
SMALLEST_VOCABULARY = 258


class Tokenizer:
    """Token ids of a text, through the `tokenizers` library. Made by `train` or `from_file`.

    Special tokens are never read from the text itself: a prompt that spells "</s>" or "<pad>"
    neither ends nor punctures its sequence.

    Attributes:
      pad_id: id of the padding token, 0.
      end_id: id of the token that closes every sequence.
      vocabulary: number of ids, special ones included; a text encoder needs at least as many.
    """

    def __init__(self, model: tokenizers.Tokenizer):
        """Wraps a tokenizer of the library; its own truncation and padding are turned off.

        Raises:
          ValueError: it has no padding or end token, or its padding is not id 0, which is what
            the text encoder masks.
        """
        special = {t.content: i for i, t in model.get_added_tokens_decoder().items() if t.special}
        self.pad_id = _find(special, PAD_NAMES, "padding")
        self.end_id = _find(special, END_NAMES, "end")
        if self.pad_id != 0:
            raise ValueError(
                f"the tokenizer pads with id {self.pad_id}, and the text encoder masks id 0; "
                "use a tokenizer whose padding token is 0, as UMT5's is"
            )
        model.no_truncation()
        model.no_padding()
        model.encode_special_tokens = True
        self._model = model
        self._warned = False

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Reads a tokenizer.json: one that `save` wrote, or an open model's, such as UMT5's.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: it is not a tokenizer.json, or has not the tokens that are needed.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no tokenizer at {path}; give the path of a tokenizer.json")
        try:
            model = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower class
            raise ValueError(f"{path} is not a tokenizer.json: {error}") from error
        try:
            return cls(model)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Writes a tokenizer.json, which `from_file` and other libraries read."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self._model.to_str(pretty=True), encoding="utf-8")

    @property
    def vocabulary(self) -> int:
        # The largest id and not the count: published vocabularies have holes.
        return max(self._model.get_vocab(with_added_tokens=True).values()) + 1

    def count(self, text: str) -> int:
        """How many tokens the whole text takes, its end token included."""
        return len(self._ids(text)) + 1

    def check_length(self, text: str, length: int) -> None:
        """Raises ValueError for a prompt that `encode` would cut."""
        count = self.count(text)
        if count > length:
            raise ValueError(
                f"the prompt takes {count} tokens, and the model reads {length}; shorten it: "
                f"{text[:60]!r}"
            )

    def encode(self, text: str, length: int) -> np.ndarray:
        """The text's ids, the end token, then zeros: int32 [length].

        A text that is too long loses its last tokens but keeps the end token, and the first time
        this happens a warning says so; `count` tells beforehand.

        Raises:
          ValueError: text is not a string, or length is not positive.
        """
        if length < 1:
            raise ValueError(f"length is {length}; it must be at least 1, for the end token")
        ids = self._ids(text)
        if len(ids) >= length and not self._warned:
            self._warned = True
            warnings.warn(
                f"a text of {len(ids) + 1} tokens is cut to the limit of {length}, and so will "
                f"others be without notice; shorten it or raise the limit: {text[:60]!r}...",
                stacklevel=2,
            )
        ids = [*ids[: length - 1], self.end_id]
        return np.array(ids + [self.pad_id] * (length - len(ids)), np.int32)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids up to the first end token; padding is skipped."""
        ids = [int(i) for i in ids]
        if self.end_id in ids:
            ids = ids[: ids.index(self.end_id)]
        return self._model.decode([i for i in ids if i != self.pad_id]).strip()

    def _ids(self, text: str) -> list[int]:
        return self._model.encode(_clean(text), add_special_tokens=False).ids

    def __reduce__(self):
        return _unpickle, (self._model.to_str(),)


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Trains a byte-level BPE: any text has tokens, and none is unknown.

    Case, compatibility forms (NFKC), runs of white space and closing punctuation make no
    difference: "A red  circle." and "a red circle" have the same ids. The same texts, in any
    order, give the same tokenizer.

    Args:
      texts: captions to learn from.
      vocabulary: upper limit of the number of ids, special ones and the 256 bytes included. Few
        texts may not fill it: see `Tokenizer.vocabulary`.

    Raises:
      ValueError: vocabulary too small for the bytes, or no texts.
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise ValueError(
            f"a vocabulary of {vocabulary} has no room for the 256 bytes and 2 special tokens; "
            f"use at least {SMALLEST_VOCABULARY}"
        )
    if isinstance(texts, str):
        raise ValueError(f"texts is the one string {texts[:60]!r}; give an iterable of captions")
    cleaned = [_clean(text) for text in texts]
    if not any(cleaned):
        raise ValueError("there is no text to train a tokenizer on; give at least one caption")
    model = tokenizers.Tokenizer(models.BPE())
    model.normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.Lowercase(),
            # A prompt's full stop must not move it away from captions that have none.
            normalizers.Replace(tokenizers.Regex(r"[\s.,;:!?。]+$"), ""),
        ]
    )
    # A space before the first word too: a word is one token wherever it stands.
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=[PAD_NAMES[0], END_NAMES[0]],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    model.train_from_iterator(cleaned, trainer)
    return Tokenizer(model)


def save_for_transformers(file: Path, folder: Path) -> None:
    """Writes a tokenizer.json so that the `transformers` library reads it and gives the same ids.

    There the end token comes from the file's own template, which is added where there is none.

    Args:
      file: a tokenizer.json that `Tokenizer.from_file` reads; raises as that does.
      folder: made if missing; a tokenizer_config.json is written beside the copy.
    """
    ours = Tokenizer.from_file(file)
    model = tokenizers.Tokenizer.from_file(str(file))
    pad, end = (model.id_to_token(i) for i in (ours.pad_id, ours.end_id))
    folder.mkdir(parents=True, exist_ok=True)
    text = Path(file).read_text(encoding="utf-8")
    bare = model.encode("a", add_special_tokens=False).ids
    if model.encode("a").ids != [*bare, ours.end_id]:
        model.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, ours.end_id)]
        )
        text = model.to_str(pretty=True)
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    config = {
        "clean_up_tokenization_spaces": False,
        "eos_token": end,
        "pad_token": pad,
        "padding_side": "right",
        "split_special_tokens": True,  # none is read from the text
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _find(special: dict[str, int], names: Sequence[str], role: str) -> int:
    for name in names:
        if name in special:
            return special[name]
    raise ValueError(
        f"the tokenizer has no {role} token: its special tokens are {sorted(special)[:8]}; "
        f"name one of them {names[0]!r}"
    )


def _clean(text: str) -> str:
    """Undoes HTML escapes (twice, as captions from the web need), and single spaces throughout."""
    if not isinstance(text, str):
        raise ValueError(f"a text must be a string, and this is {text!r}; use '' for none")
    # Lone surrogates, which a shell's undecodable bytes become, have no UTF-8 form.
    text = text.encode("utf-8", "replace").decode("utf-8")
    return " ".join(html.unescape(html.unescape(text)).split())


def _unpickle(text: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(text))

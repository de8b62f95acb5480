"""The pocket models' tokenizer: CLIP's byte-level BPE, with merges that make one token of every word of the world."""

from __future__ import annotations

from typing import Any

from vfm_ops.world.captions import PREFIXES, SYNONYMS
from vfm_ops.world.vocabulary import COLOURS, SHAPES, TEXTURES

CONTEXT = 32
_EXTRA = "a an and the of to left right above below small large thing patch empty scene on in with background two three"


def words() -> list[str]:
    """Every word that captions and phrases of the world use, sorted."""
    said = {*_EXTRA.split(), *SHAPES, *COLOURS, *TEXTURES}
    said.update(w for synonyms in SYNONYMS.values() for s in synonyms for w in s.split())
    said.update(w for prefix in PREFIXES for w in prefix.split())
    return sorted(said)


def make_tokenizer(context: int = CONTEXT) -> Any:
    """A transformers CLIPTokenizer whose words() are single tokens; other text falls apart into bytes, as in CLIP.

    The start and end tokens have the two highest ids, because CLIP-like models pool at the highest id of a sequence.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False, min_frequency=1)
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(words(), trainer)
    import json

    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = alphabet + [c + "</w>" for c in alphabet] + [a + b for a, b in merges]
    vocab = {piece: k for k, piece in enumerate(dict.fromkeys(pieces))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=context)

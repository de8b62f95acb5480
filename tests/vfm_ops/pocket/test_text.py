"""If these fail, captions fall apart into bytes, or pooling picks the wrong token."""

from __future__ import annotations

from pathlib import Path

from vfm_ops.pocket.text import CONTEXT, make_tokenizer, words
from vfm_ops.world.captions import caption
from vfm_ops.world.scene import World, image


def test_each_word_is_one_token_and_other_text_still_encodes():
    tokenizer = make_tokenizer()
    assert all(len(tokenizer(w).input_ids) == 3 for w in words())
    assert len(tokenizer("zebra").input_ids) == 2 + len("zebra")
    assert tokenizer.eos_token_id == max(tokenizer.get_vocab().values())


def test_captions_fit_the_context():
    tokenizer = make_tokenizer()
    captions = [caption(image(World(seed=1, objects=(3, 3)), i)) for i in range(30)]
    assert max(len(tokenizer(c).input_ids) for c in captions) <= CONTEXT


def test_saved_tokenizer_loads_equal(tmp_path: Path):
    from transformers import CLIPTokenizer

    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    text = "a Small red striped ring, left of something"
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.model_max_length == CONTEXT

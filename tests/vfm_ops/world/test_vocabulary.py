"""If these fail, held-out evaluation would no longer measure composition."""

from __future__ import annotations

from collections import Counter

from vfm_ops.world.vocabulary import (
    COLOURS,
    SHAPES,
    TEXTURES,
    held_out_kinds,
    kinds,
    size_word,
    training_kinds,
    with_article,
)


def test_held_out_kinds_are_never_trained_on_but_each_of_their_words_is():
    held_out, trained = set(held_out_kinds()), set(training_kinds())
    assert len(held_out) == 64
    assert not held_out & trained
    assert held_out | trained == set(kinds())
    for role, words in (("colour", COLOURS), ("texture", TEXTURES), ("shape", SHAPES)):
        assert {getattr(k, role) for k in trained} == set(words)


def test_no_word_dominates_the_held_out_kinds():
    for role, most in (("colour", 7), ("shape", 7), ("texture", 16)):
        assert max(Counter(getattr(k, role) for k in held_out_kinds()).values()) <= most


def test_phrases_say_what_is_asked_for():
    kind = next(k for k in kinds() if (k.colour, k.texture, k.shape) == ("red", "striped", "ring"))
    assert kind.phrase("small") == "small red striped ring"
    assert kind.phrase(order=1) == "striped red ring"
    assert kind.phrase(colour=False, shape=False) == "striped thing"
    assert with_article("orange star") == "an orange star"
    assert [size_word(r) for r in (0.05, 0.2, 0.3)] == ["small", "", "large"]

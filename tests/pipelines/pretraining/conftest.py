"""What the tests of pretraining share: a lake, and a corpus in memory."""

from __future__ import annotations

import pytest

from pipelines.lake import Lake
from pipelines.pretraining.items import Corpus, MemoryItems
from tests.pipelines.picture_lake import picture_lake
from tests.vfm_ops.pretrain.tiny import samples


@pytest.fixture(scope="package")
def lake(tmp_path_factory) -> Lake:
    """48 labelled and captioned pictures."""
    return picture_lake(tmp_path_factory.mktemp("pretrain") / "lake")


@pytest.fixture
def corpus() -> Corpus:
    """24 pictures in memory, so that `fit` can be the oracle."""
    return Corpus(MemoryItems(samples()), MemoryItems(samples(12)), ("red", "green", "blue"), {}, "memory", 0)

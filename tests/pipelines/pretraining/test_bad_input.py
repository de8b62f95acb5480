"""Wrong settings, arguments, lakes and checkpoints are named before Ray starts."""

from __future__ import annotations

import json

import pytest

from pipelines.lake import Lake
from pipelines.pretraining.prepare import prepare
from pipelines.pretraining.settings import make_plan
from tests.pipelines.picture_lake import picture_lake, select
from tests.pipelines.pretraining.tiny import tiny_plan
from vfm_ops.errors import UsageError


@pytest.fixture
def no_ray(monkeypatch):
    """Fails the test when Ray would be started."""
    import ray

    def refuse(*args, **kwargs):
        raise AssertionError("Ray must not be started for a wrong command")

    monkeypatch.setattr(ray, "init", refuse)


@pytest.mark.parametrize(
    ("objective", "overrides", "message"),
    [
        (
            "clip",
            ["caption_column=text"],
            r"caption_column: neither frames nor assets has a column text; they have .*caption",
        ),
        ("clip", ["caption_column=uri_"], "neither frames nor assets has a column uri_"),
        (
            "simclr",
            ["backbone=vit_tinny_patch16_224"],
            "unknown backbone 'vit_tinny_patch16_224'.* did you mean vit_tiny",
        ),
        ("simclr", ["label_column=jpeg"], "column jpeg is large_binary; a label is text or a whole number"),
        ("simclr", ["batch_size=64"], "batch_size 64 is more than the"),
        ("moco", ["queue=30"], "queue of 30 keys is not divisible by the global batch 8"),
        ("supervised", ["classes=2"], "classes=2, but there are 3 different labels"),
        ("simclr", ["eval_selection=none"], "has no selection 'none'"),
        ("clip", ["vocabulary=64", "tokenizer=/nowhere"], "no tokenizer in /nowhere"),
    ],
)
def test_wrong_settings_are_named_before_ray_starts(no_ray, lake, tmp_path, objective, overrides, message):
    with pytest.raises(UsageError, match=message):
        prepare(lake, tiny_plan(objective, *overrides), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"objective": "simlcr"}, "unknown objective 'simlcr'.*did you mean simclr"),
        ({"objective": "simclr", "preset": "tiny"}, "unknown preset 'tiny'"),
        ({"objective": "simclr", "overrides": ["batchsize=8"]}, "no key batchsize; did you mean batch_size"),
        ({"objective": "simclr", "overrides": ["run.worker=2"]}, "unknown key worker; did you mean workers"),
        ({"objective": "simclr", "overrides": ["temperature=-1"]}, "temperature: input should be greater than 0"),
        ({"objective": "simclr", "overrides": ["batch_size"]}, "write it as key=value"),
        ({"objective": "simclr", "overrides": ["batch_size=30"], "workers": "4"}, "not divisible by 4 workers"),
        ({"objective": "simclr", "overrides": ["batch_size=8"], "workers": "2-4"}, "not divisible by 3 workers"),
        ({"objective": "simclr", "workers": "many"}, "write a number, or MIN-MAX"),
        ({"objective": "simclr", "workers": "4-2"}, r"run: workers: write a number from 1, or \[min, max\]"),
        ({}, "which objective"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UsageError, match=message):
        make_plan(**arguments)


def test_a_lake_without_what_the_objective_reads_is_refused(no_ray, tmp_path):
    bare = picture_lake(tmp_path / "bare", 12, labels=False, captions=False)
    with pytest.raises(UsageError, match=r"clip needs captions, and column caption of .* holds none"):
        prepare(bare, tiny_plan("clip"), str(tmp_path / "out"))
    with pytest.raises(UsageError, match=r"supervised needs labels, and column label of .* holds none"):
        prepare(bare, tiny_plan("supervised"), str(tmp_path / "out"))
    with pytest.raises(UsageError, match="has no frames yet: run vfm process"):
        prepare(Lake.create(tmp_path / "empty"), tiny_plan("simclr"), str(tmp_path / "out"))


def test_a_selection_that_no_longer_resolves_is_refused(no_ray, tmp_path):
    lake = picture_lake(tmp_path / "lake", 12)
    select(lake, "some", [f"{i:032x}:0" for i in range(10)])
    lake.delete("frames", "frame_id", [f"{5:032x}:0"])
    with pytest.raises(UsageError, match=rf"no longer resolves: 1 of its frames, such as {5:032x}:0"):
        prepare(lake, tiny_plan("simclr", selection="some"), str(tmp_path / "out"))
    with pytest.raises(UsageError, match="has no selection 'other'"):
        prepare(lake, tiny_plan("simclr", selection="other"), str(tmp_path / "out"))


def test_a_checkpoint_of_another_config_is_refused_by_name(no_ray, lake, tmp_path):
    ready = prepare(lake, tiny_plan("simclr"), str(tmp_path))
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "checkpoint_manager_snapshot.json").write_text("{}")
    (tmp_path / "run.json").write_text(json.dumps(ready.header))
    prepare(lake, tiny_plan("simclr", "accumulate=2", "keep=5"), str(tmp_path))  # these may change
    for change, message in (("temperature=0.3", "temperature was 0.1, now 0.3"), ("base_lr=0.5", "base_lr was 0.001")):
        with pytest.raises(UsageError, match=message):
            prepare(lake, tiny_plan("simclr", change), str(tmp_path))
    with pytest.raises(UsageError, match="objective was 'simclr', now 'mae'"):
        prepare(lake, tiny_plan("mae"), str(tmp_path))


def test_a_resumed_run_reads_the_rows_of_the_run_it_resumes(no_ray, tmp_path):
    lake, out = picture_lake(tmp_path / "lake", 24), tmp_path / "out"
    first = prepare(lake, tiny_plan("simclr"), str(out))
    (out / "train").mkdir(parents=True)
    (out / "train" / "checkpoint_manager_snapshot.json").write_text("{}")
    (out / "run.json").write_text(json.dumps(first.header))
    lake.delete("frames", "frame_id", [f"{5:032x}:0"])
    again = prepare(lake, tiny_plan("simclr"), str(out))
    ids = [[s["id"] for s in r.corpus.train.load(range(len(r.corpus.train)))] for r in (first, again)]
    assert ids[0] == ids[1]
    assert f"{5:032x}:0" in ids[1]

"""What can be wrong with a run, found before Ray starts: items, settings, tokenizer, an earlier run in the same folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.lake import Lake
from pipelines.pretraining.items import Corpus, captions_of, resolve
from pipelines.pretraining.output import Output
from pipelines.pretraining.settings import Plan, check_workers
from vfm_ops.errors import UsageError, VfmError
from vfm_ops.pretrain.registry import build_objective, objective_class, objective_config
from vfm_ops.pretrain.step import check_same_run


@dataclass(frozen=True)
class Prepared:
    """A run that is known to be right."""

    plan: Plan
    corpus: Corpus
    model: dict[str, Any]  # the objective's settings with the number of classes filled in
    tokenizer: str | None  # JSON
    out: str
    header: dict[str, Any]  # run.json
    finished: dict[str, Any] | None = None  # metrics.json of a run that is already done


def prepare(lake: Lake, plan: Plan, out: str) -> Prepared:
    """Resolves the items, learns or loads the tokenizer, builds the objective once, and compares with an earlier run in `out`.

    Raises UsageError naming what is wrong. Writes nothing.
    """
    out = out if "://" in out else str(Path(out).expanduser().absolute())
    output = Output(out)
    earlier = _earlier(output)
    corpus = _resolve(lake, plan, earlier)
    return prepare_corpus(corpus, plan, out, {"lake": lake.root})


def prepare_corpus(corpus: Corpus, plan: Plan, out: str, source: dict[str, Any]) -> Prepared:
    """As `prepare`, from items that are already resolved."""
    output = Output(out)
    earlier = _earlier(output)
    model = _with_classes(plan, corpus)
    header = {
        "objective": plan.objective,
        "objective_config": objective_config(plan.objective, **model).model_dump(mode="json"),
        "train_config": plan.train_config.model_dump(mode="json"),
        "samples": len(corpus.train),
        "selection": corpus.name,
        "items": corpus.digest,
        "versions": corpus.versions,
        **source,
    }
    if earlier is not None:
        keys = ("objective", "objective_config", "train_config", "samples", "selection", "items")
        check_same_run(earlier, {key: json.loads(json.dumps(header[key])) for key in keys})
    _check_sizes(plan, corpus)
    tokenizer = _tokenizer(plan, corpus, model, output if earlier else None)
    objective = build_objective(plan.objective, **model)
    objective.prepare(1, 1, plan.train_config.batch_size)
    done = output.get("metrics.json")
    return Prepared(plan, corpus, model, tokenizer, out, header, json.loads(done) if done and earlier else None)


def _check_sizes(plan: Plan, corpus: Corpus) -> None:
    batch = plan.train_config.batch_size
    check_workers(plan.train_config, plan.run.workers)
    if batch > len(corpus.train):
        raise UsageError(
            f"batch_size {batch} is more than the {len(corpus.train)} images of {corpus.name}: set a smaller batch_size, "
            "or make the plan with `preset` small"
        )


def _earlier(output: Output) -> dict[str, Any] | None:
    """What an earlier run in this folder recorded; None when none left a checkpoint, so that nothing binds this one."""
    data = output.get("run.json")
    if data is None or output.get("train/checkpoint_manager_snapshot.json") is None:
        return None
    try:
        return json.loads(data)
    except ValueError:
        raise UsageError(f"{output.out}/run.json is damaged: name another `out`, or remove it to start anew") from None


def _resolve(lake: Lake, plan: Plan, earlier: dict[str, Any] | None) -> Corpus:
    """The items; for a resume, those of the earlier run."""
    if earlier is None:
        return resolve(lake, plan)
    try:
        return resolve(lake, plan, earlier["versions"])
    except UsageError:
        raise
    except VfmError:
        # The pinned versions were cleaned up: the newest rows do if they are the same, which the digest tells.
        return resolve(lake, plan)


def _with_classes(plan: Plan, corpus: Corpus) -> dict[str, Any]:
    """The objective's settings; a classifier gets as many classes as there are labels unless the user said otherwise."""
    if not plan.needs_labels or "classes" not in objective_class(plan.objective).Config.model_fields:
        return plan.model
    found = len(corpus.classes)
    if found < 2:
        raise UsageError(f"{plan.objective} needs at least two different labels; {corpus.name} has {found}")
    if "classes" not in plan.given:
        return {**plan.model, "classes": found}
    if int(plan.model["classes"]) < found:
        raise UsageError(f"classes={plan.model['classes']}, but there are {found} different labels: leave classes out")
    return plan.model


def _tokenizer(plan: Plan, corpus: Corpus, model: dict[str, Any], earlier: Output | None) -> str | None:
    """JSON of the tokenizer: of the run that is resumed, of a directory, or learnt from the captions."""
    if not plan.needs_captions:
        return None
    stored = earlier.get("tokenizer/tokenizer.json") if earlier else None
    if stored is not None:
        return stored.decode()
    from vfm_ops.pretrain.text import load_tokenizer, train_tokenizer

    vocabulary = objective_config(plan.objective, **model).vocabulary
    if plan.run.tokenizer or model.get("text_model"):
        tokenizer = load_tokenizer(plan.run.tokenizer or model["text_model"])
    else:
        tokenizer = train_tokenizer(_captions(corpus), vocabulary)
    if tokenizer.get_vocab_size() > vocabulary and not model.get("text_model"):
        raise UsageError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, the text tower {vocabulary}: set "
            f"vocabulary={tokenizer.get_vocab_size()}"
        )
    return tokenizer.to_str()


def _captions(corpus: Corpus, most: int = 1_000_000) -> list[str]:
    """Up to `most` training captions, spread evenly."""
    places = range(0, len(corpus.train), max(1, len(corpus.train) // most))
    return [text for place in places for text in captions_of(corpus.train, place)]

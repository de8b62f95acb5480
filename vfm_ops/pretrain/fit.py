"""Training from memory in one process: the plainest trainer, which tests use and larger ones must agree with.

Checkpoint folder:
    step-00000120.pt    Stepper.state_dict(): model, optimiser, step (hence schedules and data position), random state
    step-00000180.pt    the newest; older ones than `keep` are removed after a newer one is whole on disk
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vfm_ops.errors import UsageError, VfmError
from vfm_ops.pretrain.augment import ViewPlan, collate, make_views
from vfm_ops.pretrain.data import Samples, batch_positions
from vfm_ops.pretrain.objective import Objective
from vfm_ops.pretrain.step import Stepper
from vfm_ops.pretrain.text import Tokenize
from vfm_ops.pretrain.train_config import TrainConfig


def check_columns(plan: ViewPlan, samples: Samples, objective: str) -> None:
    """Raises UsageError when the views need labels or captions that the samples lack."""
    if not len(samples):
        raise UsageError(f"{objective}: there is nothing to train on: the selection is empty")
    if plan.label and samples.labels is None:
        raise UsageError(f"{objective} needs labels: name their column with label_column")
    if plan.tokens and (samples.captions is None or not any(bool(c) for c in samples.captions)):
        raise UsageError(f"{objective} needs captions: name their column with caption_column")


def make_batch(
    plan: ViewPlan, samples: Samples, step: int, config: TrainConfig, tokenize: Tokenize | None = None
) -> dict[str, np.ndarray]:
    """The global batch of a step: a function of the seed and the step alone."""
    places = batch_positions(step, config.batch_size, len(samples), config.seed)
    return collate([make_views(plan, samples[i], config.seed, epoch, tokenize) for epoch, i in places])


def fit(
    objective: Objective,
    samples: Samples,
    config: TrainConfig,
    tokenize: Tokenize | None = None,
    device: str = "cpu",
    folder: Path | None = None,
    checkpoint_every: int = 0,
    keep: int = 2,
    until_step: int | None = None,
    on_step: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Trains to the end of the schedule (or `until_step`) and returns the logs of the steps it ran.

    folder: resumes from its newest checkpoint, writes one every `checkpoint_every` steps and one at the end. Raises
    UsageError for missing columns or a checkpoint of another config, TrainingDiverged when the loss is no number (what is
    on disk is then still good).
    """
    plan = objective.view_plan(objective.config)
    check_columns(plan, samples, objective.name)
    stepper = Stepper(objective, config, len(samples), device)
    if folder is not None and (newest := newest_checkpoint(folder)) is not None:
        stepper.load_state_dict(torch.load(newest, map_location=device, weights_only=True))
    end = stepper.total_steps if until_step is None else min(until_step, stepper.total_steps)
    history = []
    while stepper.step_index < end:
        history.append(stepper.step(make_batch(plan, samples, stepper.step_index, config, tokenize)))
        if on_step is not None:
            on_step(history[-1])
        if folder is not None and checkpoint_every and stepper.step_index % checkpoint_every == 0:
            write_checkpoint(stepper.state_dict(), folder, keep)
    if folder is not None and history:
        write_checkpoint(stepper.state_dict(), folder, keep)
    return history


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the highest step; half-written ones do not count."""
    return max(folder.glob("step-*.pt"), default=None)


def write_checkpoint(state: dict[str, Any], folder: Path, keep: int = 2) -> Path:
    """Writes beside and renames, so a crash or a full disk never costs the previous checkpoint; then drops all but `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{state['step']:08d}.pt"
    partial = path.with_suffix(".partial")
    try:
        torch.save(state, partial)
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a failed write of its zip stream as RuntimeError
        partial.unlink(missing_ok=True)
        raise VfmError(
            f"can't write checkpoint {path}: {error}; the one before it is kept: free space and resume"
        ) from error
    for old in sorted(folder.glob("step-*.pt"))[:-keep]:
        old.unlink()
    return path

"""`python -m jobs.pocket NAME`: trains one of the shipped pocket models again, from its seed, and writes it with its card.

`python -m jobs.pocket pipeline` measures detection and tracking through the whole pipeline on held-out videos;
`python -m jobs.pocket table` prints the table of docs/models.md from the cards of what ships.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli import run
from vfm_ops.errors import UsageError, VfmError
from vfm_ops.models.shipped import POCKET, WEIGHTS, pocket_path


def command(
    name: Annotated[str, typer.Argument(help="pocket-clip, pocket-owl, pocket-sam2, pocket-dino, pipeline or table.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model's directory; default: the installed package's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Default: the shipped model's.")] = None,
    scale: Annotated[
        float, typer.Option(min=0.0, help="Multiplies the number of steps; small values try the command out.")
    ] = 1.0,
    threads: Annotated[int, typer.Option(min=1, help="Torch threads.")] = 1,
    evaluate_only: Annotated[
        bool, typer.Option("--eval", help="Measure the shipped model on held-out data, train nothing.")
    ] = False,
) -> int:
    """Trains a pocket model on generated data, measures it on held-out data, writes weights and card."""
    if name == "table":
        print(table())
        return 0
    if name == "pipeline":
        with tempfile.TemporaryDirectory() as scratch:
            _say_metrics(pipeline_quality(Path(scratch) if out is None else out))
        return 0
    import torch

    if name not in RECIPES:
        raise UsageError(f"there is no pocket model {name!r}; there are {', '.join(POCKET.values())}")
    torch.set_num_threads(threads)
    recipe = RECIPES[name]()
    if evaluate_only:
        _say_metrics(recipe.evaluate(recipe.load(pocket_path(name))))
        return 0
    seed = recipe.seed if seed is None else seed
    directory = (WEIGHTS if out is None else out) / name
    started = time.perf_counter()
    trained = recipe.train(seed, scale, directory)
    minutes = (time.perf_counter() - started) / 60
    recipe.save(trained, directory)
    metrics = recipe.evaluate(recipe.load(directory))
    _say_metrics(metrics)
    from vfm_ops.pocket.train import write_card

    again = f"python -m jobs.pocket {name}" + (f" --scale {scale:g}" if scale != 1 else "")
    write_card(directory, name, recipe.about, again, seed, minutes, metrics, recipe.start)
    print(f"wrote {directory}")
    return 0


def _say_metrics(metrics: dict[str, float]) -> None:
    for what, value in metrics.items():
        print(f"{what}: {value:.3f}")


PIPELINE_RECIPE = """embed: []
detect: {prompts: "%s", threshold: 0.5}
track: {detect_every: 15}
"""


def pipeline_quality(folder: Path, videos: int = 12) -> dict[str, float]:
    """HOTA and identity switches of `vfm process` with detect and track, by every colour's "COLOUR thing".

    On held-out 60-frame videos of 2-3 things, and on the quokka over real footage, where its media are. folder: for the
    corpora and lakes; must be empty or absent.
    """
    from jobs.bench.quokka import write_quokka_videos

    world = f"--videos {videos} --frames 60 --size 160x160 --objects 2-3 --split heldout --seed 60001"
    _vfm("world", "--out", str(folder / "world"), *world.split())
    scores = _through_tables(folder / "world", f"{videos} generated videos")
    try:
        write_quokka_videos(folder / "quokka", 6)
    except UsageError as e:
        print(f"no quokka: {e}")
        return scores
    return scores | _through_tables(folder / "quokka", "6 quokka videos")


def _through_tables(corpus: Path, where: str) -> dict[str, float]:
    """Ingests a corpus's videos, processes them, and scores the tables by `vfm eval`'s function."""
    from pipelines.lake import Lake
    from pipelines.reporting.evaluate import evaluate
    from vfm_ops.world.vocabulary import colour_prompts

    lake, recipe = str(corpus / "lake"), corpus / "recipe.yaml"
    recipe.write_text(PIPELINE_RECIPE % colour_prompts())
    _vfm("ingest", str(corpus / "videos"), "--lake", lake)
    _vfm("process", "--lake", lake, "--recipe", str(recipe))
    scores = evaluate(Lake.open(lake), corpus / "annotations" / "videos.json")
    return {
        f"HOTA, detect and track, {where}": scores["HOTA"],
        f"identity switches a video, {where}": scores["IDSW_per_video"],
        f"J&F of tracked things, {where}": scores["J&F"],
    }


def _vfm(*argv: str) -> None:
    from jobs.cli import main as vfm

    if vfm(list(argv)):
        raise VfmError(f"vfm {argv[0]} did not end well: see above")


def table() -> str:
    """The figures of the shipped models' cards, as one Markdown table."""
    rows = ["| model | held-out figure | value |", "| --- | --- | --- |"]
    for name in POCKET.values():
        card = WEIGHTS / name / "README.md"
        if card.is_file():
            found = re.findall(r"^\| (.+?) \| (\d+\.\d+) \|$", card.read_text(), flags=re.M)
            rows += [f"| {name} | {what} | {value} |" for what, value in found]
    return "\n".join(rows)


class ClipRecipe:
    """pocket-clip: sentences and images of the world."""

    seed, start = 0, "random weights"
    about = (
        "A CLIP (transformers CLIPModel, 96 px, patch 12) for text search and zero-shot labels of generated scenes: shapes, "
        "colours, textures, sizes and relations. It knows nothing of the rest of the world."
    )

    def train(self, seed: int, scale: float, directory: Path) -> Any:
        from vfm_ops.pocket import clip

        return clip.train(steps=_scaled(1600, scale), seed=seed, checkpoint=directory)

    def save(self, trained: Any, directory: Path) -> None:
        from vfm_ops.pocket import clip

        model, tokenizer = trained
        clip.save(model, tokenizer, directory)

    def load(self, directory: Path) -> Any:
        import torch
        from transformers import CLIPModel, CLIPTokenizer

        return CLIPModel.from_pretrained(directory, dtype=torch.float32).eval(), CLIPTokenizer.from_pretrained(
            directory
        )

    def evaluate(self, loaded: Any) -> dict[str, float]:
        from vfm_ops.pocket import clip

        return clip.evaluate(*loaded)


class OwlRecipe:
    """pocket-owl: phrases and boxes, from pocket-clip's towers."""

    seed, start = 1, "the pocket-clip that ships with it"
    about = (
        "An OWL-ViT (transformers OwlViTForObjectDetection, 144 px, patch 12) on pocket-clip's towers: boxes for free-text "
        "phrases about generated things."
    )

    def train(self, seed: int, scale: float, directory: Path) -> Any:
        from vfm_ops.pocket import owl

        model, tokenizer = ClipRecipe().load(pocket_path("pocket-clip"))
        return owl.train(model, tokenizer, steps=_scaled(900, scale), seed=seed, checkpoint=directory), tokenizer

    def save(self, trained: Any, directory: Path) -> None:
        from vfm_ops.pocket import owl

        model, tokenizer = trained
        owl.save(model, tokenizer, directory)

    def load(self, directory: Path) -> Any:
        import torch
        from transformers import CLIPTokenizer, OwlViTForObjectDetection

        model = OwlViTForObjectDetection.from_pretrained(directory, dtype=torch.float32).eval()
        return model, CLIPTokenizer.from_pretrained(directory)

    def evaluate(self, loaded: Any) -> dict[str, float]:
        from vfm_ops.pocket.score import evaluate_detection

        return evaluate_detection(*loaded)


class Sam2Recipe:
    """pocket-sam2: prompts on stills, memory on clips, then corrections, beside the tracking that is there."""

    seed, start = 2, "random weights"
    about = (
        "A SAM 2 (transformers Sam2VideoModel, 128 px, hidden 128, memory 64): masks from boxes and clicks, and their "
        "propagation through video, for generated things and photographic cut-outs."
    )

    def train(self, seed: int, scale: float, directory: Path) -> Any:
        from vfm_ops.pocket import sam2_keep, sam2_train

        stills, short, clips = (_scaled(n, scale) for n in (2500, 600, 1800))
        rollouts = [(_scaled(n, scale), age) for n, age in ((1500, 0), (1200, 0), (1000, 3000))]
        model = sam2_train.train(stills, short, clips, rollouts, seed, checkpoint=directory)
        return sam2_keep.teach_corrections(model, _scaled(1300, scale), _scaled(200, scale), checkpoint=directory)

    def save(self, trained: Any, directory: Path) -> None:
        from vfm_ops.pocket import sam2

        sam2.save(trained, directory)

    def load(self, directory: Path) -> Any:
        import torch
        from transformers import Sam2VideoModel

        return Sam2VideoModel.from_pretrained(directory, dtype=torch.float32).eval()

    def evaluate(self, loaded: Any) -> dict[str, float]:
        from vfm_ops.pocket import score_masks

        by_prompt = score_masks.evaluate_prompts(loaded) | score_masks.evaluate_clicks(loaded)
        return by_prompt | score_masks.evaluate_tracking(loaded) | score_masks.evaluate_clicked_clips(loaded)


class DinoRecipe:
    """pocket-dino: no labels, frames of the world and of real photographs."""

    seed, start = 4, "random weights"
    about = (
        "A ViT (timm, 96 px, patch 12, width 128) trained by DINO, without labels, on generated stills and photographs."
    )

    def train(self, seed: int, scale: float, directory: Path) -> Any:
        from vfm_ops.pocket import dino

        return dino.train(epochs=12 * scale, seed=seed)

    def save(self, trained: Any, directory: Path) -> None:
        from vfm_ops.pocket import dino

        dino.save(trained, directory)

    def load(self, directory: Path) -> Any:
        import timm

        return timm.create_model(f"local-dir:{directory}", pretrained=True).float().eval()

    def evaluate(self, loaded: Any) -> dict[str, float]:
        from vfm_ops.pocket import dino

        return dino.evaluate(loaded)


RECIPES: dict[str, Callable[[], Any]] = {
    "pocket-clip": ClipRecipe,
    "pocket-owl": OwlRecipe,
    "pocket-sam2": Sam2Recipe,
    "pocket-dino": DinoRecipe,
}


def _scaled(steps: int, scale: float) -> int:
    return max(1, round(steps * scale))


if __name__ == "__main__":
    sys.exit(run(command))

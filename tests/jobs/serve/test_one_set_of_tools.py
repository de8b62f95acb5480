"""The same prompts from Python, on the command line and over HTTP give the same masks, bit for bit.

The replicas are the real ones, behind the real gateway on loopback, without Ray, whose workers have threads of their own.
"""

from __future__ import annotations

import json
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from jobs.bench.serve import free_port
from jobs.cli import main
from jobs.serve.client import Client, ServerError
from jobs.serve.gateway import Gateway
from jobs.serve.listener import Listener
from jobs.serve.models.segmentation import Segmentation
from jobs.serve.models.tracking import Tracking
from jobs.serve.settings import RequestLimits, ServeSettings
from pipelines.lake import Lake
from tests.vfm_ops.track.conftest import read_frames
from vfm_ops.media.encode import write_video
from vfm_ops.media.video_frames import VideoFrames
from vfm_ops.track.load import load_tracker
from vfm_ops.track.masks import decode_rle, encode_rle
from vfm_ops.track.memory_bank import BankPolicy
from vfm_ops.track.session import VideoSession
from vfm_ops.track.tracker import TrackerSettings

MODEL = "sam2:pocket"
HEIGHT, WIDTH, FRAMES = 96, 160, 8


class Handle:
    """A replica in this process, called as a Ray handle is."""

    def __init__(self, replica: Any) -> None:
        self._replica = replica

    def options(self, **options: Any) -> Handle:
        return self

    def __getattr__(self, name: str) -> Any:
        class Method:
            def __init__(self, call: Any) -> None:
                self._call = call

            def remote(self, *arguments: Any) -> Any:
                made = self._call(*arguments)
                return Stream(made) if name == "stream" else made

        return Method(getattr(self._replica, name))


class Stream:
    """An asynchronous generator that can be cancelled, as Ray's are."""

    def __init__(self, results: Any) -> None:
        self._results = results

    def __aiter__(self) -> Any:
        return self._results

    def cancel(self) -> None:
        pass


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Of an application with the real replicas of segmentation and tracking, over an empty lake."""
    lake = Lake.create(tmp_path_factory.mktemp("tools") / "lake")
    lake.ensure("assets")
    settings, limits = ServeSettings(lake=lake.root), RequestLimits().model_dump()
    choice = {"spec": MODEL, "device": "cpu", "replicas": [1, 1]}

    replicas: list[Any] = []

    def make() -> Gateway:
        replicas.extend((Segmentation(choice, limits), Tracking(choice, limits)))
        return Gateway(settings.model_dump(), None, {}, *map(Handle, replicas))

    async def nothing() -> None:
        pass

    port = free_port()
    listener = Listener(make, nothing, "127.0.0.1", port)
    yield Client(f"http://127.0.0.1:{port}")
    listener.close()
    replicas[0]._decoder.close()
    replicas[1]._sandbox.close()


@pytest.fixture(scope="module")
def clip(tmp_path_factory, bikes):
    """A video file of real footage."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    write_video(path, iter(read_frames(bikes, FRAMES, HEIGHT, WIDTH)), 25.0)
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory, photographs):
    """A picture file that is not of the model's shape."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    cv2.imwrite(str(path), cv2.resize(cv2.imread(str(photographs[1])), (220, 150), interpolation=cv2.INTER_AREA))
    return path


def blob(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return ((x - 0.6 * width) / (0.2 * width)) ** 2 + ((y - 0.5 * height) / (0.3 * height)) ** 2 < 1


def calls() -> list[dict[str, Any]]:
    """Several objects, every kind of prompt, a late one, corrections, and what is taken back."""
    return [
        {"add_new_points_or_box": {"frame_idx": 0, "obj_id": 1, "points": [[100, 40], [10, 10]], "labels": [1, 0]}},
        {"add_new_points_or_box": {"frame_idx": 0, "obj_id": 2, "box": [90, 20, 150, 90]}},
        {"add_new_mask": {"frame_idx": 1, "obj_id": 3, "mask": encode_rle(blob(HEIGHT, WIDTH))}},
        {"add_new_points_or_box": {"frame_idx": 2, "obj_id": 4, "box": [60, 10, 120, 70]}},
        {"propagate_in_video": {}},
        {"add_new_points_or_box": {"frame_idx": 4, "obj_id": 1, "points": [[30, 30]], "labels": [0]}},
        {
            "add_new_points_or_box": {
                "frame_idx": 4,
                "obj_id": 1,
                "points": [[90, 60]],
                "labels": [1],
                "clear_old_points": False,
            }
        },
        {"remove_object": {"obj_id": 2}},
        {"propagate_in_video": {}},
        {"add_new_points_or_box": {"frame_idx": 6, "obj_id": 3, "points": [[20, 20]], "labels": [0]}},
        {"propagate_in_video": {"start_frame_idx": 2, "max_frame_num_to_track": 3}},
        {"clear_all_prompts_in_frame": {"frame_idx": 6, "obj_id": 3}},
        {"propagate_in_video": {}},
        {"propagate_in_video": {"start_frame_idx": 3, "max_frame_num_to_track": 2, "reverse": True}},
    ]


def masks_in_python(clip) -> dict[tuple[int, int], np.ndarray]:
    found: dict[tuple[int, int], np.ndarray] = {}
    settings = TrackerSettings(bank=BankPolicy(around_prompts=True), fill_hole_area=6)
    with VideoFrames(str(clip)) as frames:
        session = VideoSession(load_tracker(MODEL, settings, device="cpu"), frames)
        for entry in calls():
            ((name, arguments),) = entry.items()
            if name == "add_new_mask":
                arguments = {**arguments, "mask": decode_rle(arguments["mask"])}
            answer = getattr(session, name)(**arguments)
            if name == "remove_object":
                found = {key: mask for key, mask in found.items() if key[1] != arguments["obj_id"]}
            for seen in [] if answer is None else [answer] if name.startswith("add_") else answer:
                found |= {(seen.frame_index, i): m for i, m in zip(seen.object_ids, seen.masks())}
    return found


def masks_on_the_command_line(clip, folder) -> dict[tuple[int, int], np.ndarray]:
    (folder / "calls.yaml").write_text(yaml.safe_dump(calls()))
    rows, out = folder / "rows.jsonl", folder / "out.mp4"
    options = ["--prompt-file", str(folder / "calls.yaml"), "--rows", str(rows), "--fill-hole-area", "6"]
    assert main(["track", str(clip), "--out", str(out), "--model", MODEL, "--device", "cpu", *options]) == 0
    found = map(json.loads, rows.read_text().splitlines())
    return {(row["frame_index"], row["track_id"]): decode_rle(row["mask"]) for row in found}


def masks_over_http(clip, client) -> dict[tuple[int, int], np.ndarray]:
    found: dict[tuple[int, int], np.ndarray] = {}
    with client.track(video=clip, fill_hole_area=6) as session:
        for entry in calls():
            ((name, arguments),) = entry.items()
            if name == "add_new_mask":
                arguments = {**arguments, "mask": decode_rle(arguments["mask"])}
            answer = getattr(session, name)(**arguments)
            if name == "remove_object":
                found = {key: mask for key, mask in found.items() if key[1] != arguments["obj_id"]}
            if name.startswith("add_"):
                found[arguments["frame_idx"], arguments["obj_id"]] = decode_rle(answer["mask"])
            elif answer is not None:
                for seen in answer:
                    found |= {(seen["frame_index"], o["object_id"]): decode_rle(o["mask"]) for o in seen["objects"]}
    return found


def test_a_video_is_tracked_alike_from_everywhere(client, clip, tmp_path):
    ours = masks_in_python(clip)
    assert {i for _, i in ours} == {1, 3, 4}
    assert {t for t, _ in ours} == set(range(FRAMES))
    shown = {key: mask for key, mask in ours.items() if mask.any()}
    assert len(shown) > FRAMES, "most masks are empty: this would show little"
    by_command = masks_on_the_command_line(clip, tmp_path)
    assert by_command.keys() <= shown.keys()  # rows are written of what is visible
    over_http = masks_over_http(clip, client)
    assert over_http.keys() == ours.keys()
    for key, mask in ours.items():
        assert np.array_equal(over_http[key], mask), key
        assert key not in by_command or np.array_equal(by_command[key], mask), key


def asked_of_pictures(height: int, width: int) -> list[dict[str, Any]]:
    return [
        {"points": [[60, 40]], "labels": [1]},
        {"points": [[150, 90], [30, 30]], "labels": [1, 0]},
        {"box": [20, 30, 120, 140]},
        {"points": [[150, 90]], "labels": [1], "box": [90, 10, 210, 120]},
        {"mask": encode_rle(blob(height, width))},
    ]


def test_a_picture_is_segmented_alike_from_everywhere(client, picture, tmp_path, capsys):
    from vfm_ops.segment.segmenter import load_segmenter

    rgb = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
    asked = asked_of_pictures(*rgb.shape[:2])
    mending = {"max_hole_area": 8, "max_sprinkle_area": 8}
    segmenter = load_segmenter(MODEL, device="cpu")
    encoded = segmenter.encode(rgb)
    (tmp_path / "prompts.json").write_text(json.dumps(asked))
    logits_file = tmp_path / "logits.npz"
    options = ["--prompt-file", str(tmp_path / "prompts.json"), "--max-hole-area", "8", "--max-sprinkle-area", "8"]
    options += ["--return-logits", str(logits_file), "--json", "--device", "cpu", "--model", MODEL]
    assert main(["segment", str(picture), *options]) == 0
    by_command = json.loads(capsys.readouterr().out)["objects"]
    logits = np.load(logits_file)
    with client.segment(picture) as session:
        for number, entry in enumerate(asked, 1):
            given = {name: [np.asarray(value)] for name, value in entry.items() if name in ("points", "labels")}
            if "box" in entry:
                given["boxes"] = np.asarray([entry["box"]])
            if "mask" in entry:
                given["mask_input"] = [decode_rle(entry["mask"])]
            ours = segmenter.segment(encoded, **given, **mending)
            best = ours.scores[0].argmax()
            row, answer = by_command[number - 1], session.click(**entry, **mending, return_logits=True)[0]
            expected = ours.masks(return_logits=True)[0, best]
            assert np.array_equal(logits[f"{picture.name}/{number}"], expected)
            assert np.array_equal(answer.logits, expected)
            assert np.array_equal(decode_rle(row["mask"]), expected > 0)
            assert np.array_equal(decode_rle(answer.rle), expected > 0)
            assert answer.score == row["score"] == float(ours.scores[0, best])
            if "mask" not in entry:
                again = segmenter.segment(encoded, **given, mask_input=ours.logits_NKhw[0, best].numpy()[None])
                mended = session.click(**entry, mask_input=answer.low_res_logits, return_logits=True)[0]
                assert np.array_equal(mended.logits, again.masks(return_logits=True)[0, again.scores[0].argmax()])


def test_everything_is_found_alike_from_everywhere(client, picture, capsys):
    from vfm_ops.segment.automatic import GridSettings, generate_masks
    from vfm_ops.segment.segmenter import load_segmenter

    rgb = cv2.cvtColor(cv2.imread(str(picture)), cv2.COLOR_BGR2RGB)
    grid = {"points_per_side": 6, "min_iou": 0.1, "min_stability": 0.1, "max_overlap": 0.9, "min_area": 20}
    grid |= {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "min_mask_region_area": 10}
    ours = generate_masks(load_segmenter(MODEL, device="cpu"), rgb, GridSettings(**grid))
    assert len({m.crop_box for m in ours}) > 2
    options = [part for name, value in grid.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert main(["segment", str(picture), "--everything", "--json", "--device", "cpu", *options]) == 0
    by_command = json.loads(capsys.readouterr().out)["objects"]
    with client.segment(picture) as session:
        over_http = session.everything(**grid)
        with pytest.raises(ServerError, match="20480 points in all, crops included: ask about at most 8192"):
            session.everything(points_per_side=64, crop_n_layers=1)
        with pytest.raises(ServerError, match="1 layers of crops and the whole picture need 2"):
            session.everything(point_grids=[[[0.5, 0.5]]], crop_n_layers=1)
    assert [m.rle for m in ours] == [row["mask"] for row in by_command] == [m.rle for m in over_http]


HOSTILE = [
    ({"size": [HEIGHT, WIDTH], "counts": "0" * 50}, "runs do not fill"),
    ({"size": [HEIGHT, WIDTH], "counts": "o" * 50}, "no COCO RLE"),
    ({"size": [100_000, 100_000], "counts": "0000"}, "give 96 x 160"),
    ({"size": [HEIGHT, WIDTH], "counts": "é~"}, "not what pycocotools writes"),
]


@pytest.mark.parametrize(("mask", "said"), HOSTILE)
def test_a_mask_of_anyone_is_checked_before_it_is_decoded(client, clip, mask, said):
    with client.track(video=clip) as session:
        with pytest.raises(ServerError, match=said) as refused:
            session.prompt(0, mask=mask)
        assert refused.value.status in (400, 422)
        session.prompt(0, points=[[80, 50]], labels=[1])
        assert len(list(session.stream(frames=1))) == 1


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda s: s.add_new_points_or_box(99, 1, points=[[1, 1]], labels=[1]), "frames 0 to 7"),
        (lambda s: s.add_new_points_or_box(0, 1, points=[[999, 1]], labels=[1]), "outside the 160 x 96"),
        (
            lambda s: s.add_new_points_or_box(0, 1, box=[1, 1, 9, 9], clear_old_points=False),
            "only points can be appended",
        ),
        (lambda s: s.remove_object(5), "object 5 is not tracked"),
        (lambda s: s.clear_all_prompts_in_frame(0, 5), "object 5 is not tracked"),
        (lambda s: list(s.propagate_in_video()), "post a prompt"),
    ],
)
def test_a_wrong_call_is_a_sentence(client, clip, call, said):
    with client.track(video=clip) as session, pytest.raises(ServerError, match=said) as refused:
        call(session)
    assert refused.value.status in (400, 422)

"""The tracker by itself: batches, state, snapshots, bounded memory, and what it says to bad input."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from tests.vfm_ops.track.test_tracker_parity import FOUR
from vfm_ops.errors import MediaError, UsageError, WeightsUnavailable
from vfm_ops.track.load import load_network, load_tracker
from vfm_ops.track.memory_bank import BankPolicy
from vfm_ops.track.network import Sam2Network
from vfm_ops.track.prompts import Prompt
from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings


def logits_of(tracker, frames, script, start=0):
    out = {}
    for t, frame in enumerate(frames, start):
        masks = tracker.track(frame, frame_index=t, prompts=script.get(t, ()))
        out[t] = dict(zip(masks.object_ids, masks.logits_Nhw))
    return out


def assert_close(a, b) -> None:
    assert a.keys() == b.keys()
    for t in a:
        for i in a[t]:
            torch.testing.assert_close(a[t][i], b[t][i], rtol=1e-6, atol=1e-4, msg=f"frame {t}, object {i}")


# Prompted on different frames, so that the objects of a batch have different numbers of memories.
SCRIPT = {0: FOUR[:1], 3: FOUR[1:2], 6: FOUR[2:3], 9: FOUR[3:]}


def test_objects_in_one_batch_get_what_each_would_get_alone(exact, frames):
    network = exact[1]
    apart = TrackerSettings(binarise_together=False)
    together = logits_of(Sam2Tracker(network, apart), frames[:16], SCRIPT)
    for prompt in FOUR:
        own = {t: [p for p in prompts if p is prompt] for t, prompts in SCRIPT.items()}
        first = next(t for t, prompts in own.items() if prompts)
        alone = logits_of(Sam2Tracker(network, apart), frames[first:16], own, start=first)
        i = prompt.object_id
        assert_close({t: {i: together[t][i]} for t in alone}, alone)


@pytest.mark.parametrize("at_once", [1, 3])
def test_batches_of_any_size_give_the_same_masks(exact, frames, at_once):
    whole = logits_of(Sam2Tracker(exact[1]), frames[:12], SCRIPT)
    parts = logits_of(Sam2Tracker(exact[1], TrackerSettings(objects_at_once=at_once)), frames[:12], SCRIPT)
    assert_close(parts, whole)


def test_heads_and_fused_kernel_attend_as_the_written_out_form_does(network, frames, monkeypatch):
    """The path of large inputs and cards, forced on a small one."""
    from vfm_ops.track.memory_attention import BatchedMemoryAttention

    out = logits_of(Sam2Tracker(network), frames[:5], {0: FOUR[:1], 2: FOUR[1:2]})
    monkeypatch.setattr(BatchedMemoryAttention, "max_explicit_scores", 0)
    fused = logits_of(Sam2Tracker(network), frames[:5], {0: FOUR[:1], 2: FOUR[1:2]})
    for t in out:
        for i in out[t]:
            torch.testing.assert_close(fused[t][i], out[t][i], rtol=1e-3, atol=1e-2)


CONTINUE = """
import sys, numpy as np, torch
from vfm_ops.track.load import load_network
from vfm_ops.track.tracker import Sam2Tracker
torch.set_num_threads(1)
folder, state, frames, out = sys.argv[1:]
tracker = Sam2Tracker.from_bytes(load_network(folder, device="cpu"), open(state, "rb").read())
np.save(out, torch.stack([tracker.track(f).logits_Nhw for f in np.load(frames)]).numpy())
"""


def test_state_restored_in_another_process_gives_the_same_masks_bit_for_bit(model, frames, tmp_path):
    torch.set_num_threads(1)
    model.save_pretrained(tmp_path / "weights")
    network = load_network(str(tmp_path / "weights"), device="cpu")
    tracker = Sam2Tracker(network)
    logits_of(tracker, frames[:12], SCRIPT)
    (tmp_path / "state").write_bytes(tracker.to_bytes())
    np.save(tmp_path / "frames.npy", np.stack(frames[12:24]))
    expected = torch.stack([tracker.track(f).logits_Nhw for f in frames[12:24]]).numpy()
    files = [str(tmp_path / name) for name in ("weights", "state", "frames.npy", "out.npy")]
    subprocess.run([sys.executable, "-c", CONTINUE, *files], check=True, timeout=200)
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)


def test_state_bytes_survive_a_round_trip_whole(network, frames):
    tracker = Sam2Tracker(network, TrackerSettings(bank=BankPolicy(history=3, max_prompted=2)))
    logits_of(tracker, frames[:12], SCRIPT)
    again = Sam2Tracker.from_bytes(network, tracker.to_bytes())
    assert again.to_bytes() == tracker.to_bytes()
    assert again.settings == tracker.settings


def test_state_of_other_weights_and_other_bytes_are_refused(network, frames):
    from tests.vfm_ops.track.conftest import tiny_model
    from vfm_ops.track.network import Sam2Network

    tracker = Sam2Tracker(network)
    tracker.track(frames[0], prompts=FOUR[:1])
    with pytest.raises(UsageError, match="other weights"):
        Sam2Tracker.from_bytes(Sam2Network(tiny_model(1)), tracker.to_bytes())
    with pytest.raises(UsageError, match="no saved tracker state"):
        Sam2Tracker.from_bytes(network, tracker.to_bytes()[:200])
    with pytest.raises(UsageError, match="no saved tracker state"):
        Sam2Tracker.from_bytes(network, b"not a state")


def test_bank_stays_flat_however_long_the_video(network, frames):
    """Bytes held after every frame from the 17th on, four objects: pointers and memories are all replaced, none added."""
    tracker = Sam2Tracker(network, TrackerSettings(bank=BankPolicy(history=0)))
    held = []
    for t in range(60):
        tracker.track(frames[t], prompts=FOUR if t == 0 else ())
        held.append(tracker.nbytes())
    assert len(set(held[16:])) == 1
    assert len(tracker.to_bytes()) < 1.2 * held[-1]


def test_going_back_to_a_snapshot_tracks_the_same_again(network, frames):
    tracker = Sam2Tracker(network)
    logits_of(tracker, frames[:8], SCRIPT)
    snapshot = tracker.snapshot()
    first = logits_of(tracker, frames[8:14], {}, start=8)
    tracker.restore(snapshot)
    second = logits_of(tracker, frames[8:14], {}, start=8)
    assert all(torch.equal(first[t][i], second[t][i]) for t in first for i in first[t])


def test_a_generator_of_frames_is_tracked_as_it_comes(network, frames):
    pulled = []

    def camera():
        for t in range(4):
            pulled.append(t)
            yield frames[t]

    for t, masks in enumerate(Sam2Tracker(network).track_many(camera(), {0: FOUR[:2]})):
        assert masks.frame_index == t
        assert pulled == list(range(t + 1))


def test_a_removed_object_prompted_again_remembers_nothing(network, frames):
    tracker = Sam2Tracker(network)
    logits_of(tracker, frames[:6], {0: FOUR[:2]})
    tracker.remove(7)
    assert tracker.object_ids == [3]
    again = tracker.track(frames[6], frame_index=6, prompts=FOUR[:1])
    fresh = Sam2Tracker(network).track(frames[6], frame_index=6, prompts=FOUR[:1])
    torch.testing.assert_close(again.logits_Nhw[again.object_ids.index(7)], fresh.logits_Nhw[0])
    with pytest.raises(UsageError, match="object 99 is not tracked"):
        tracker.remove(99)


def test_prompting_after_tracking_leaves_the_other_objects_as_they_are(network, frames):
    tracker = Sam2Tracker(network)
    logits_of(tracker, frames[:3], {0: FOUR[:1]})
    before = tracker.state.objects[7].memory_at(2)
    added = tracker.prompt(FOUR[1:2])
    assert added.object_ids == [3]
    assert tracker.state.objects[7].memory_at(2) is before
    assert tracker.track(frames[3]).object_ids == [7, 3]


def test_a_preview_is_what_the_prompt_then_gives_and_remembers_nothing(network, frames):
    tracker = Sam2Tracker(network)
    logits_of(tracker, frames[:3], {0: FOUR[:1]})
    held = tracker.to_bytes()
    shown = tracker.preview(FOUR[1:2])
    assert tracker.to_bytes() == held
    torch.testing.assert_close(shown.logits_Nhw, tracker.prompt(FOUR[1:2]).logits_Nhw)


def test_a_frame_whose_features_are_held_needs_no_pixels(network, frames):
    tracker = Sam2Tracker(network, TrackerSettings(feature_cache=2, bank=BankPolicy(history=2)))
    logits_of(tracker, frames[:6], {0: FOUR[:1]})
    other = Sam2Tracker.from_bytes(network, tracker.to_bytes())
    correction = [Prompt(7, points=[[70.0, 30.0]], labels=[0])]
    without = tracker.track(None, frame_index=4, prompts=correction)
    assert torch.equal(without.logits_Nhw, other.track(frames[4], frame_index=4, prompts=correction).logits_Nhw)


def test_a_prompt_on_a_frame_that_is_not_there_says_what_to_send(network, frames):
    tracker = Sam2Tracker(network)
    logits_of(tracker, frames[:3], {0: FOUR[:1]})
    with pytest.raises(UsageError, match="frame 50 was never sent"):
        tracker.track(None, frame_index=50, prompts=FOUR[1:2])
    with pytest.raises(UsageError, match="frame 0 is no longer held"):
        tracker.track(None, frame_index=0, prompts=FOUR[1:2])
    with pytest.raises(UsageError, match="track a frame first"):
        Sam2Tracker(network).prompt(FOUR[:1])


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ({"points": [[float("nan"), 3.0]], "labels": [1]}, "not a number"),
        ({"points": [[500.0, 3.0]], "labels": [1]}, "outside the 128 x 96 frame"),
        ({"points": [[5.0, 3.0]], "labels": [1, 0]}, "2 labels"),
        ({"points": [[5.0, 3.0]], "labels": [4]}, "a label is 1"),
        ({"box": [130.0, 0.0, 200.0, 50.0]}, "outside the 128 x 96 frame"),
        ({"box": [50.0, 0.0, 20.0, 50.0]}, "empty box"),
        ({"box": [0.0, 0.0, float("inf"), 50.0]}, "four finite numbers"),
        ({"mask": np.ones((5, 5), bool)}, "resize the mask"),
        ({"mask": np.zeros((96, 128), bool)}, "no pixel set"),
    ],
)
def test_a_bad_prompt_is_named_and_changes_nothing(network, frames, prompt, told):
    tracker = Sam2Tracker(network)
    tracker.track(frames[0], prompts=FOUR[:1])
    before = tracker.to_bytes()
    with pytest.raises(UsageError, match=told):
        tracker.track(frames[1], prompts=[Prompt(3, box=[1.0, 1.0, 40.0, 40.0]), Prompt(8, **prompt)])
    assert tracker.to_bytes() == before


@pytest.mark.parametrize(
    ("prompt", "told"),
    [
        ({}, "is empty"),
        ({"points": [[1.0, 1.0]]}, "labels together"),
        ({"box": [0, 0, 9, 9], "mask": np.ones((9, 9), bool)}, "one or the other"),
        ({"box": [0, 0, 9, 9], "append": True}, "only points can be appended"),
    ],
)
def test_a_prompt_that_says_nothing_or_two_things_is_refused(prompt, told):
    with pytest.raises(UsageError, match=told):
        Prompt(1, **prompt)


def test_a_box_that_sticks_out_is_clipped(network, frames):
    inside = Sam2Tracker(network).track(frames[0], prompts=[Prompt(1, box=[80.0, 20.0, 128.0, 96.0])])
    beyond = Sam2Tracker(network).track(frames[0], prompts=[Prompt(1, box=[80.0, 20.0, 400.0, 300.0])])
    assert torch.equal(inside.logits_Nhw, beyond.logits_Nhw)


def test_another_resolution_of_the_same_shape_goes_on_and_another_shape_is_refused(network, frames):
    tracker = Sam2Tracker(network)
    tracker.track(frames[0], prompts=FOUR[:1])
    larger = np.ascontiguousarray(frames[1].repeat(2, 0).repeat(2, 1))
    assert tracker.track(larger).masks().shape == (1, 192, 256)
    with pytest.raises(MediaError, match="is 96 x 96 but the video began as 128 x 96") as caught:
        tracker.track(np.ascontiguousarray(frames[2][:, :96]))
    assert caught.value.kind == "resolution_change"


def test_five_hundred_objects_are_refused_in_words_and_two_hundred_fit(network, frames):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (500, 2))
    prompts = [Prompt(i, box=[x, y, x + 30, y + 30]) for i, (x, y) in enumerate(corners)]
    tracker = Sam2Tracker(network)
    with pytest.raises(UsageError, match="would have 500 objects and the limit is 256"):
        tracker.track(frames[0], prompts=prompts)
    assert len(tracker.track(frames[0], prompts=prompts[:200]).object_ids) == 200


def test_a_frame_that_is_none_is_named(network):
    with pytest.raises(UsageError, match="float64"):
        Sam2Tracker(network).track(np.zeros((4, 4, 3)))


def test_a_checkpoint_of_another_architecture_is_named(tmp_path):
    from transformers import Sam2Model

    from tests.vfm_ops.track.conftest import tiny_config

    parts = tiny_config()
    from transformers import Sam2Config

    config = Sam2Config(
        vision_config=parts.vision_config.to_dict(),
        prompt_encoder_config=parts.prompt_encoder_config.to_dict(),
        mask_decoder_config=parts.mask_decoder_config.to_dict(),
    )
    Sam2Model(config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="SAM 2 image checkpoint, without the memory modules"):
        load_network(str(tmp_path))


def test_weights_that_are_not_here_say_whence_to_fetch_them():
    with pytest.raises(WeightsUnavailable, match=r"facebook/sam2\.1-hiera-tiny"):
        load_tracker("sam2:facebook/sam2.1-hiera-tiny")


@pytest.mark.parametrize("runtime", ["openvino", "torch"])
def test_an_image_encoder_in_another_runtime_gives_the_same_masks(runtime, model, frames, tmp_path, monkeypatch):
    from vfm_ops.track.load import compile_image_encoder

    monkeypatch.setenv("VFM_CACHE", str(tmp_path / "cache"))
    model.save_pretrained(tmp_path / "weights")
    network = load_network(f"sam2:{tmp_path / 'weights'}", device="cpu")
    fast = Sam2Tracker(network, image_encoder=compile_image_encoder(network, runtime, "exact"))
    plain = Sam2Tracker(network)
    for t in range(4):
        a, b = (x.track(frames[t], prompts=FOUR[:2] if t == 0 else ()) for x in (fast, plain))
        assert np.array_equal(a.visible, b.visible)
        assert (a.logits_Nhw.clamp(min=-100) - b.logits_Nhw.clamp(min=-100)).abs().max() < 0.1


def test_an_image_encoder_of_torch_leaves_its_maps_on_the_device(model, frames):
    from vfm_ops.track.load import compile_image_encoder

    network = Sam2Network(model)
    square = torch.zeros(1, network.image_size, network.image_size, 3, dtype=torch.uint8)
    maps = compile_image_encoder(network, "torch", "exact")(square)
    assert all(isinstance(m, torch.Tensor) for m in maps)


def test_a_network_in_bfloat16_tracks_all_kinds_of_prompts(frames):
    """What runs on a card: every prompt kind, memory and state in the lower precision, close to float32 where both begin."""
    from tests.vfm_ops.track.conftest import tiny_model
    from vfm_ops.track.network import Sam2Network

    low = Sam2Tracker(Sam2Network(tiny_model(), dtype=torch.bfloat16))
    full = Sam2Tracker(Sam2Network(tiny_model()))
    first = [tracker.track(frames[0], prompts=FOUR) for tracker in (low, full)]
    assert first[0].logits_Nhw.dtype == torch.float32
    agreement = ((first[0].logits_Nhw > 0) == (first[1].logits_Nhw > 0)).float().mean()
    assert agreement > 0.9
    for t in range(1, 4):
        assert torch.isfinite(low.track(frames[t]).logits_Nhw).all()
    again = Sam2Tracker.from_bytes(low.network, low.to_bytes())
    assert torch.equal(again.track(frames[4]).logits_Nhw, low.track(frames[4]).logits_Nhw)

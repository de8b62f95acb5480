"""transformers' session driven by its private way, as Meta's predictor drives its own: one object prompted at a time, the mask
that is there fed back with the clicks, and a correction kept like a first prompt where that is wanted."""

from __future__ import annotations

import torch

from tests.vfm_ops.track.conftest import Oracle


class PrivateSession(Oracle):
    """The oracle of `VideoSession`. sticks: corrections become conditioning frames. feeds: previous masks are fed back."""

    def __init__(self, model, frames, sticks: bool = True, feeds: bool = True) -> None:
        super().__init__(model, frames)
        self.sticks, self.feeds = sticks, feeds

    @torch.inference_mode()
    def add(self, frame_index: int, prompt):
        """A prompt of one object, answered at once. Returns mask logits (h, w) and object logit."""
        self.prompt(frame_index, [prompt])
        self.session.obj_with_new_inputs = []
        s, i = self.session, self.session.obj_id_to_idx(prompt.object_id)
        out = s.output_dict_per_obj[i]
        tracked = s.frames_tracked_per_obj[i].get(frame_index)
        own = out["cond_frame_outputs"].pop(frame_index, None)  # the frame doesn't attend to itself
        fresh = tracked is None or not out["cond_frame_outputs"]
        before = own or out["non_cond_frame_outputs"].get(frame_index)
        points = s.point_inputs_per_obj[i].get(frame_index)
        previous = None
        if self.feeds and before is not None and points is not None:
            previous = before["pred_masks"].clamp(-32.0, 32.0)
        made = self.model._run_single_frame_inference(
            s,
            frame_idx=frame_index,
            obj_idx=i,
            batch_size=1,
            is_init_cond_frame=fresh,
            point_inputs=points,
            mask_inputs=s.mask_inputs_per_obj[i].get(frame_index),
            reverse=bool(tracked and tracked["reverse"]),
            prev_sam_mask_logits=previous,
        )
        is_cond = fresh or self.sticks or own is not None
        if is_cond:
            out["non_cond_frame_outputs"].pop(frame_index, None)
        s.store_output(i, frame_index, output_value=made, is_conditioning_frame=is_cond)
        masks, scores = [made["high_res_masks"]], [made["object_score_logits"]]
        self.model._batch_encode_memories(s, frame_index, [i], masks, scores, [True])
        return made["pred_masks"][0, 0], made["object_score_logits"].flatten()[0]

    @torch.inference_mode()
    def track(self, frame_index: int, reverse: bool = False) -> dict[int, torch.Tensor]:
        """All objects on a frame: mask logits (h, w) by object."""
        logits, _ = self.forward(frame_index, reverse)
        return dict(zip(self.session.obj_ids, logits))

    def clear(self, frame_index: int, object_id: int) -> None:
        """As Meta's `clear_all_prompts_in_frame`."""
        s, i = self.session, self.session.obj_id_to_idx(object_id)
        s.remove_point_inputs(i, frame_index)
        s.remove_mask_inputs(i, frame_index)
        out = s.output_dict_per_obj[i]
        if frame_index in out["cond_frame_outputs"]:
            out["non_cond_frame_outputs"][frame_index] = out["cond_frame_outputs"].pop(frame_index)
        s.frames_tracked_per_obj[i].pop(frame_index, None)

    def remove(self, object_id: int) -> None:
        """As Meta's `remove_object`: what is left is numbered anew."""
        s = self.session
        kept = [i for i in s.obj_ids if i != object_id]
        old = [s.obj_id_to_idx(i) for i in kept]
        for name in ("point_inputs_per_obj", "mask_inputs_per_obj", "output_dict_per_obj", "frames_tracked_per_obj"):
            held = getattr(s, name)
            setattr(s, name, {n: held[o] for n, o in enumerate(old)})
        s._obj_id_to_idx.clear()
        s._obj_idx_to_id.clear()
        s._obj_id_to_idx.update({i: n for n, i in enumerate(kept)})
        s._obj_idx_to_id.update(dict(enumerate(kept)))
        s.obj_ids = kept

    def clear_around(self, frame_index: int, slots: int = 7) -> None:
        """As Meta's `_clear_non_cond_mem_around_input`."""
        for out in self.session.output_dict_per_obj.values():
            if frame_index in out["cond_frame_outputs"]:
                for t in range(frame_index - slots, frame_index + slots + 1):
                    out["non_cond_frame_outputs"].pop(t, None)

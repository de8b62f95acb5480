"""If these fail, tracks would be trained and scored against wrong identities."""

from __future__ import annotations

import numpy as np

from vfm_ops.world.clips import Motion, clip
from vfm_ops.world.scene import World
from vfm_ops.world.shapes import Pose


def test_any_frame_is_the_same_alone_as_in_order():
    made = clip(World(seed=2), 4, frames=12, shots=2)
    in_order = [scene.rgb for scene in made]
    assert np.array_equal(in_order[7], clip(World(seed=2), 4, frames=12, shots=2).frame(7).rgb)


def test_shots_tile_the_clip_and_own_their_tracks():
    made = clip(World(seed=5, objects=(2, 3)), 0, frames=50, shots=3)
    assert [s.start for s in made.shots] == [0, *[s.stop for s in made.shots[:-1]]]
    assert made.shots[-1].stop == 50
    ids = [s.first_track + k for s in made.shots for k in range(len(s.things))]
    assert ids == list(range(1, made.tracks + 1))


def test_things_move_smoothly_within_a_shot():
    made = clip(World(seed=6, objects=(3, 3)), 1, frames=60)
    centres = np.array([[(t.pose.cx, t.pose.cy) for t in made.frame(k).things] for k in range(60)])
    assert np.abs(np.diff(centres, axis=0)).max() < 128 * 0.12
    assert np.ptp(centres, axis=0).max() > 10


def test_some_things_leave_and_return_and_some_are_hidden():
    left_and_returned = hidden = 0
    for i in range(12):
        made = clip(World(seed=7, objects=(3, 5), radius=(0.1, 0.25)), i, frames=40)
        frames = [made.frame(t) for t in range(0, 40, 2)]
        area = np.array([[f.mask(k).sum() for f in frames] for k in range(made.tracks)])
        for row in area:
            gone = np.flatnonzero(row == 0)
            left_and_returned += len(gone) > 0 and row[: gone[0]].any() and row[gone[0] :].any()
        hidden += int((area.min(1) < 0.5 * area.max(1)).sum())
    assert left_and_returned >= 3
    assert hidden >= 10


def test_motion_crosses_through_its_pose_at_half_time():
    pose = Pose(50, 40, 10)
    moved = [Motion(cross=(30, -20), turn=2.0).at(pose, t) for t in (0.0, 0.5, 1.0)]
    assert (moved[0].cx, moved[0].cy) == (35, 50)
    assert (moved[1].cx, moved[1].cy) == (50, 40)
    assert (moved[2].cx, moved[2].cy, moved[2].angle) == (65, 30, 2.0)

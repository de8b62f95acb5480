"""Where commands are told to write: what can't be written is said before any work, by exit code 2."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jobs.cli import main
from vfm_ops.evaluate.files import write_picture


@pytest.fixture(scope="module")
def picture(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(path)
    return str(path)


DETECT, SEGMENT = ["detect", "--prompts", "a dog ."], ["segment", "--box", "5,5,30,30"]
TRACK = ["track", "--box", "5,5,30,30"]


@pytest.mark.parametrize(
    ("command", "option", "name", "said"),
    [
        (DETECT, "--sheet", "no/s.png", "is no directory"),
        (DETECT, "--sheet", "s.txt", "its name should end in .jpg or .jpeg or .png or .webp"),
        (SEGMENT, "--sheet", "no/s.png", "is no directory"),
        (SEGMENT, "--sheet", "", "its name should end in"),
        (SEGMENT, "--return-logits", "no/l.npz", "is no directory"),
        (SEGMENT, "--return-logits", "l.bin", "its name should end in .npz"),
        (TRACK, "--out", "no/v.mp4", "is no directory"),
        (TRACK, "--out", "v.txt", "its name should end in .mp4"),
        (TRACK, "--rows", "no/r.jsonl", "is no directory"),
        (TRACK, "--rows", "", "it is a directory"),
    ],
)
def test_a_place_that_cannot_be_written_is_said(command, option, name, said, picture, tmp_path, capsys):
    place = tmp_path / name
    assert main([command[0], picture, *command[1:], option, str(place)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: cannot write {place}")
    assert said in error
    assert not list(tmp_path.iterdir())


def test_what_the_system_has_against_a_file_is_said(tmp_path):
    """Root may do anything, but a name may be too long for anybody."""
    from vfm_ops.errors import UsageError

    with pytest.raises(UsageError, match=r"cannot write .*: File name too long"):
        write_picture(tmp_path / f"{'a' * 300}.png", np.zeros((4, 4, 3), np.uint8))

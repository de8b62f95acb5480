"""What every command does alike: it names itself in its help, and says in one sentence that it was stopped."""

from __future__ import annotations

import os
import signal
from unittest import mock

import pytest

from jobs import cli, curate, export, info, ingest, pretrain, process, search, serve
from jobs.cli import in_options, main, run


@pytest.mark.parametrize(
    ("command", "name"), [(process.command, "process"), (info.command, "info"), (serve.command, "serve")]
)
def test_help_names_the_command_that_was_typed(command, name, capsys):
    assert run(command, ["--help"]) == 0
    assert capsys.readouterr().out.strip().startswith(f"Usage: vfm {name} ")


@pytest.fixture
def default_sigint():
    """What a shell's foreground gives Python; a shell's background ignores SIGINT, and so would all that it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "stopped by SIGTERM")])
def test_a_run_that_is_stopped_says_so_gives_back_what_it_holds_and_ends_with_3(number, said, capsys, default_sigint):
    """typer makes exit code 130 of Ctrl-C, without a word; SIGTERM, which schedulers send, would leave the lake locked."""
    held = ["lake"]

    def command() -> int:
        """Stopped in the middle."""
        try:
            os.kill(os.getpid(), number)
            while True:
                pass
        finally:
            held.clear()

    before = signal.getsignal(signal.SIGTERM)
    assert run(command, []) == 3
    assert held == []
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == (
        f"error: {said}; what was committed stays, and the same command goes on from there (--debug shows the traceback)\n"
    )


@pytest.mark.parametrize(
    ("command", "asked", "said"),
    [
        (search.command, "name one thing: `text`, `image` or `frame_id`", "name one thing: a TEXT, --image or --frame"),
        (search.command, "`k` must be at least 1", "-k must be at least 1"),
        (curate.command, "anew with `full=True`, or under another `name`", "anew with --full, or under another --selection"),
        (export.command, "or export with `pictures=False`", "or export with --no-pictures"),
        (ingest.command, "`max_members`, `column`, `allow_outside=True`", "--max-members, --column, --allow-outside"),
        (pretrain.command, "`overrides` batch: write key=value", "--set batch: write key=value"),
        (info.command, "`selection` and `frames.jpeg`, of others", "`selection` and `frames.jpeg`, of others"),
    ],
)  # fmt: skip
def test_an_error_of_the_python_api_comes_in_the_options_of_the_command(command, asked, said):
    assert in_options(command, asked) == said


def test_a_command_that_is_wrong_names_its_own_options(capsys):
    assert run(search.command, ["--lake", "nowhere"]) == 2
    assert run(ingest.command, ["pictures"]) == 2
    assert capsys.readouterr().err == (
        "error: name one thing to search for: a TEXT, --image or --frame\n"
        "error: name the lake: --lake DIRECTORY, or --lake s3://bucket/prefix\n"
    )


def test_joining_ray_leaves_sigterm_to_the_command(monkeypatch):
    import ray

    from pipelines import cluster

    def init(*arguments, **settings):
        signal.signal(signal.SIGTERM, lambda *_: None)

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGTERM)
    with mock.patch.dict(os.environ):
        cluster.connect()
    assert signal.getsignal(signal.SIGTERM) is before


def test_quarantine_is_shown_by_reason_with_what_to_do(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    for name, data in (("empty.jpg", b""), ("bare.jpg", b""), ("text.png", b"no picture")):
        (tmp_path / "in" / name).write_bytes(data)
    lake = str(tmp_path / "lake")
    assert main(["ingest", str(tmp_path / "in"), "--lake", lake]) == 0
    options = ["--set", "shots.detector=none", "--set", "embed=[]"]
    assert main(["process", "--lake", lake, *options]) == 1
    assert "vfm info" in capsys.readouterr().out
    assert main(["process", "--lake", lake, *options]) == 1  # nothing is pending, and yet not all is well
    assert "3 quarantined (0 by this run)" in capsys.readouterr().out
    with mock.patch.dict(os.environ, VFM_QUARANTINE_EXIT_CODE="0"):  # as a scheduler wants it, which would try for ever
        assert main(["process", "--lake", lake, *options]) == 0
        assert main(["process", "--lake", lake, "--set", "nothing=1"]) == 2
    assert main(["info", "--lake", lake, "--examples", "1"]) == 0
    shown = capsys.readouterr().out
    assert "2 quarantined in decode: empty" in shown
    assert "1 quarantined in decode: not_media" in shown
    assert shown.count("is empty (0 bytes)") == 1
    assert f"vfm retry --lake {lake}" in shown
    assert cli.COMMANDS["info"]

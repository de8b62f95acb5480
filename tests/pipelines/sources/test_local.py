"""A local tree: what is found, what is left out and said so."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from pipelines.sources import ListingOptions, Tally, list_source, resolve_sources
from pipelines.sources.rows import file_uri, local_path
from tests.pipelines.sources.conftest import encoded, listing, names
from vfm_ops.errors import UsageError


def fill(folder, *files: str, data: bytes | None = None):
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded() if data is None else data)


def test_a_tree_gives_every_image_and_video_and_counts_the_rest(tmp_path):
    fill(tmp_path, "a.jpg", "deep/er/b.PNG", "deep/c.mp4", "notes.txt", "labels.json", "run.py", "song.mp3")
    rows, tally = listing(tmp_path)
    assert {(r["uri"], r["media_type"]) for r in rows} == {
        (str(tmp_path / "a.jpg"), "image"),
        (str(tmp_path / "deep/er/b.PNG"), "image"),
        (str(tmp_path / "deep/c.mp4"), "video"),
    }
    assert rows[0]["size"] == os.path.getsize(tmp_path / "a.jpg")
    assert tally.skipped == {".txt": 1, ".json": 1, ".py": 1, ".mp3": 1}


def test_content_tells_what_an_unknown_extension_hides(tmp_path):
    fill(tmp_path, "no_extension", "data.blob", data=encoded("PNG"))
    fill(tmp_path, "prose", "empty.blob", data=b"once upon a time" * 40)
    rows, _ = listing(tmp_path)
    assert names(rows) == ["data.blob", "no_extension"]
    assert {r["media_type"] for r in rows} == {"image"}


def test_wrong_content_under_a_media_name_is_an_asset_so_that_processing_can_say_what_is_wrong(tmp_path):
    fill(tmp_path, "text.jpg", "empty.mp4", data=b"")
    assert names(listing(tmp_path)[0]) == ["empty.mp4", "text.jpg"]


def test_typescript_is_no_transport_stream(tmp_path):
    fill(tmp_path, "app.ts", data="export const größe = 1\n".encode() * 100)
    fill(tmp_path, "film.ts", data=(b"G" + bytes(187)) * 5)
    assert names(listing(tmp_path)[0]) == ["film.ts"]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    fill(tmp_path, ".thumb.jpg", ".cache/x.jpg", "seen.jpg")
    rows, tally = listing(tmp_path)
    assert names(rows) == ["seen.jpg"]
    assert tally.skipped["hidden"] == 2


def linked_tree(tmp_path: Path) -> Path:
    """A tree with links to itself, to its parent, within it, and out of it to a folder that links back to its own."""
    fill(tmp_path, "tree/a.jpg", "tree/sub/b.jpg", "outside/c.jpg", "outside/inner/d.jpg")
    tree, outside = tmp_path / "tree", tmp_path / "outside"
    (tree / "self").symlink_to(tree)
    (tree / "sub" / "up").symlink_to(tmp_path)
    (tree / "again").symlink_to(tree / "sub")
    (tree / "out").symlink_to(outside)
    (outside / "back").symlink_to(outside / "inner")
    return tree


def test_link_loops_end_and_links_out_of_the_tree_are_refused_and_said(tmp_path):
    rows, tally = listing(linked_tree(tmp_path))
    assert sorted(names(rows)) == ["a.jpg", "b.jpg"]
    assert tally.skipped["link to a directory listed anyway"] == 2
    assert tally.refused == {"outside its source": 2}
    assert sorted(tally.problems) == [
        f"{tmp_path}/tree/out: leads out of {tmp_path}/tree, to {tmp_path}/outside; `allow_outside=True` takes it",
        f"{tmp_path}/tree/sub/up: leads out of {tmp_path}/tree, to {tmp_path}; `allow_outside=True` takes it",
    ]


def test_links_out_of_the_tree_are_followed_once_when_asked_for(tmp_path):
    rows, tally = listing(linked_tree(tmp_path), options=ListingOptions(allow_outside=True))
    assert sorted(names(rows)) == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert tally.skipped["link to a directory listed anyway"] == 4
    assert tally.left_out == 0


def test_an_unreadable_folder_costs_that_folder_and_is_reported(tmp_path, monkeypatch):
    fill(tmp_path, "good/a.jpg", "locked/b.jpg")
    real = os.scandir

    def refusing(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr("pipelines.sources.local.os.scandir", refusing)
    rows, tally = listing(tmp_path)
    assert names(rows) == ["a.jpg"]
    assert (tally.unreadable, tally.problems) == (1, [f"{tmp_path}/locked: Permission denied"])


def test_dangling_links_are_reported_and_pipes_left_alone(tmp_path):
    fill(tmp_path, "a.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    rows, tally = listing(tmp_path)
    assert names(rows) == ["a.jpg"]
    assert tally.unreadable == 1
    assert tally.skipped["special file"] == 1


@pytest.mark.parametrize("name", ["é漢字🎬.jpg", "sp ace#?%41.jpg", "new\nline.jpg", "-dash.jpg"])
def test_odd_names_reach_the_table_as_they_are(tmp_path, name):
    fill(tmp_path, name)
    (row,), _ = listing(tmp_path)
    assert Path(local_path(row["uri"])).read_bytes() == encoded()
    assert row["uri"] == str(tmp_path / name)


def test_a_name_that_is_no_unicode_is_a_url_that_leads_back_to_it(tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9 100%.jpg")
    with open(path, "wb") as file:
        file.write(encoded())
    (row,), _ = listing(tmp_path)
    assert row["uri"].endswith("caf%E9%20100%25.jpg")
    assert os.fsencode(local_path(row["uri"])) == path
    assert file_uri(local_path(row["uri"])) == row["uri"]


def test_captions_and_labels_come_from_where_the_options_say(tmp_path):
    fill(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "cat/1.txt").write_text(" a cat\n", encoding="utf-8")
    rows, _ = listing(tmp_path, options=ListingOptions(captions="sidecar", labels="folder"))
    assert [(r["caption"], r["label"]) for r in rows] == [("a cat", "cat"), (None, "dog")]
    assert all(r["caption"] is None and r["label"] is None for r in listing(tmp_path)[0])


def test_a_lake_inside_the_tree_is_not_taken_for_a_source(tmp_path):
    fill(tmp_path, "a.jpg", "lake/assets.lance/x.jpg")
    (tmp_path / "lake" / "lake.json").write_text("{}")
    rows, tally = listing(tmp_path)
    assert names(rows) == ["a.jpg"]
    assert tally.skipped["lake"] == 1


def test_a_wide_and_a_deep_tree_are_listed_whole_in_bounded_batches(tmp_path):
    fill(
        tmp_path, *(f"wide/{i}.jpg" for i in range(5000)), *(f"{'d/' * (i % 40)}{i}.png" for i in range(200)), data=b""
    )
    tally = Tally()
    (source,) = resolve_sources([str(tmp_path)])
    sizes = [b.num_rows for b in list_source(source, ListingOptions(), tally)]
    assert sum(sizes) == 5200
    assert max(sizes) <= 4096


def test_a_listing_that_is_given_up_leaves_no_thread(tmp_path):
    fill(tmp_path, *(f"{i}/{j}.jpg" for i in range(30) for j in range(3)), data=b"")
    before = threading.active_count()
    batches = list_source(resolve_sources([str(tmp_path)])[0], ListingOptions(), Tally())
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_globs_files_and_shard_ranges(tmp_path):
    fill(tmp_path, "a.jpg", "b.png", "x/c.jpg", "x/y/d.jpg", "n-008.jpg", "n-009.jpg", "n-010.jpg", "n-011.jpg")
    assert names(listing(f"{tmp_path}/[ab].*")[0]) == ["a.jpg", "b.png"]
    assert names(listing(f"{tmp_path}/x/**/*.jpg")[0]) == ["c.jpg", "d.jpg"]
    assert names(listing(f"{tmp_path}/n-{{009..011}}.jpg")[0]) == ["n-009.jpg", "n-010.jpg", "n-011.jpg"]
    assert names(listing(tmp_path / "a.jpg", tmp_path / "x/c.jpg")[0]) == ["a.jpg", "c.jpg"]


def test_a_list_names_paths_urls_and_folders_and_reports_what_is_missing(tmp_path):
    fill(tmp_path, "a.jpg", "sub/b.jpg", "tree/c.jpg", "tree/d.txt")
    lines = [
        "a.jpg",
        str(tmp_path / "sub/b.jpg"),
        f"file://{tmp_path}/a%2Ejpg",
        "tree",
        "",
        "gone.jpg",
        "http://x/y.jpg",
    ]
    (tmp_path / "list.txt").write_text("\r\n".join(lines))
    rows, tally = listing(f"@{tmp_path}/list.txt")
    assert names(rows) == ["a.jpg", "a.jpg", "b.jpg", "c.jpg"]
    assert tally.unreadable == 2
    assert tally.problems[0] == f"{tmp_path}/gone.jpg: No such file or directory"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}/missing", "does not exist"),
        ("{tmp}/*.jpg", "nothing matches"),
        ("@{tmp}/missing.txt", "cannot read the list"),
        ("{tmp}/a.tar.gz", "compressed archive"),
        ("https://example.org/a.jpg", "web address"),
        ("nope://bucket/a.jpg", "cannot open nope://"),
        ("{tmp}/lake", "is a lake"),
        ("@{tmp}/pipe", "is a pipe, not a file"),
        ("a\0b.jpg", "does not exist"),
    ],
)
def test_a_source_that_cannot_be_used_says_why(tmp_path, source, message):
    (tmp_path / "a.tar.gz").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe")
    fill(tmp_path, "lake/lake.json")
    with pytest.raises(UsageError, match=message):
        resolve_sources([source.format(tmp=tmp_path)])


@pytest.mark.parametrize("options", [{"captions": "beside"}, {"labels": "column:"}, {"threads": 0}, {"max_members": 0}])
def test_wrong_options_are_refused(options):
    with pytest.raises(UsageError):
        ListingOptions(**options)

"""Sources that somebody prepared: links, pipes, devices and names that must cost one item, and open nothing else."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import lance
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipelines.sources.local as local
from pipelines.sources import ListingOptions, RowReader, media_source, resolve_sources
from tests.pipelines.sources.conftest import encoded, listing, names, write_tar
from vfm_ops.errors import MediaError, UsageError
from vfm_ops.media.local_file import OutsideError, open_regular

# A pipe that is opened to be read waits for a writer, for ever: the timeout of the suite would end these tests.
SECRET = b"root:x:0:0:root:/root:/bin/sh\n"


@pytest.fixture
def tree(tmp_path) -> Path:
    """A folder with one picture, beside a folder that is none of ours with another and a secret."""
    for folder in ("tree", "private"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tree" / "mine.jpg").write_bytes(encoded(shade=1))
    (tmp_path / "private" / "theirs.jpg").write_bytes(encoded(shade=2))
    (tmp_path / "private" / "passwd").write_bytes(SECRET)
    return tmp_path / "tree"


# -- links -------------------------------------------------------------------------------------------------------------


def test_a_link_to_a_file_of_the_machine_is_refused_in_trees_and_patterns(tree):
    (tree / "innocent.jpg").symlink_to(tree.parent / "private" / "passwd")
    (tree / "no_extension").symlink_to(tree.parent / "private" / "theirs.jpg")
    (tree / "deep").mkdir()
    (tree / "deep" / "up.png").symlink_to("../../private/theirs.jpg")
    for source in (tree, f"{tree}/*", f"{tree}/**"):
        rows, tally = listing(source)
        assert names(rows) == ["mine.jpg"], source
        assert tally.refused == {"outside its source": 3}
        assert any("innocent.jpg: leads out of" in p and "allow_outside=True" in p for p in tally.problems)
    rows, tally = listing(tree, options=ListingOptions(allow_outside=True))
    assert sorted(names(rows)) == ["innocent.jpg", "mine.jpg", "no_extension", "up.png"]


def test_a_link_that_would_be_skipped_anyway_is_no_refusal(tree):
    (tree / "readme.md").symlink_to("/etc/hostname")
    _, tally = listing(tree)
    assert (tally.skipped, tally.left_out) == ({".md": 1}, 0)


def test_links_within_the_tree_keep_their_names_and_captions(tree):
    """A cache of blobs under hashes, and folders of links to them with the names, is a common layout."""
    (tree / "blobs").mkdir()
    (tree / "blobs" / "5f00").write_bytes(encoded(shade=3))
    (tree / "cat").mkdir()
    (tree / "cat" / "1.jpg").symlink_to("../blobs/5f00")
    (tree / "cat" / "1.txt").write_text("a cat")
    rows, tally = listing(tree, options=ListingOptions(captions="sidecar", labels="folder"))
    found = {r["uri"].removeprefix(f"{tree}/"): (r["caption"], r["label"]) for r in rows}
    assert found == {"blobs/5f00": (None, "blobs"), "cat/1.jpg": ("a cat", "cat"), "mine.jpg": (None, "tree")}
    assert tally.left_out == 0


def test_what_the_user_names_is_taken_wherever_it_leads(tree):
    (tree.parent / "alias.jpg").symlink_to(tree / "mine.jpg")
    (tree.parent / "folder").symlink_to(tree)
    (tree.parent / "list.txt").write_text("alias.jpg\nprivate/theirs.jpg\n")
    assert names(listing(tree.parent / "alias.jpg")[0]) == ["alias.jpg"]
    assert names(listing(tree.parent / "folder")[0]) == ["mine.jpg"]
    assert names(listing(f"@{tree.parent}/list.txt")[0]) == ["alias.jpg", "theirs.jpg"]


def test_a_caption_is_not_read_through_a_link_out_of_the_tree(tree):
    (tree / "mine.txt").symlink_to(tree.parent / "private" / "passwd")
    (row,), tally = listing(tree, options=ListingOptions(captions="sidecar"))
    assert row["caption"] is None
    assert tally.refused == {"outside its source": 1}


@pytest.mark.parametrize("name", ["shard.tar", "table.parquet", "table.lance", "folder"])
def test_archives_tables_and_folders_behind_links_out_of_the_tree_are_refused(tree, name):
    private = tree.parent / "private"
    write_tar(private / "shard.tar", {"1.jpg": encoded()})
    pq.write_table(pa.table({"image": [encoded()]}), private / "table.parquet")
    lance.write_dataset(pa.table({"image": [encoded()]}), private / "table.lance")
    (private / "folder").mkdir()
    (private / "folder" / "1.jpg").write_bytes(encoded())
    (tree / name).symlink_to(private / name)
    rows, tally = listing(tree)
    assert names(rows) == ["mine.jpg"]
    assert tally.refused == {"outside its source": 1}
    assert len(listing(tree, options=ListingOptions(allow_outside=True))[0]) == 2


def test_a_lance_table_with_a_part_elsewhere_is_refused(tree):
    lance.write_dataset(pa.table({"image": [encoded()]}), tree.parent / "private" / "t.lance")
    lance.write_dataset(pa.table({"image": [encoded(shade=9)]}), tree / "t.lance")
    (part,) = (tree / "t.lance" / "data").iterdir()
    (other,) = (tree.parent / "private" / "t.lance" / "data").iterdir()
    part.unlink()
    part.symlink_to(other)
    for source in (tree, tree / "mine.jpg", tree / "t.lance"):
        rows, tally = listing(source)
        assert [r for r in rows if r["container"]] == []
    assert "has a part" in tally.problems[0]


@pytest.mark.parametrize("pattern", ["**/*.jpg", "*/*.jpg", "**"])
def test_two_links_to_their_own_folder_do_not_make_a_pattern_endless(tree, pattern):
    """Followed, they'd lead to 2 to the power of 40 names of one picture."""
    (tree / "sub").mkdir()
    (tree / "sub" / "b.jpg").write_bytes(encoded())
    for name in ("x", "y"):
        (tree / "sub" / name).symlink_to(tree / "sub")
    rows, _ = listing(f"{tree}/{pattern}")
    assert {"b.jpg"} <= set(names(rows)) <= {"b.jpg", "mine.jpg"}
    assert len({r["uri"] for r in rows if r["uri"].endswith("b.jpg")}) == 1


# -- races -------------------------------------------------------------------------------------------------------------


def test_a_folder_replaced_by_a_link_while_it_is_listed_gives_nothing_of_the_other(tree, monkeypatch):
    """The names come from elsewhere: none of them exists in the folder that was checked."""
    (tree / "sub").mkdir()
    real = os.scandir

    def replaced(path):
        if str(path).endswith("sub"):
            os.rename(path, f"{path}.away")
            os.symlink(tree.parent / "private", path)
        return real(path)

    monkeypatch.setattr(local.os, "scandir", replaced)
    rows, _ = listing(tree)
    assert names(rows) == ["mine.jpg"]


YEAR_AGO = (1.7e9, 1.7e9)


def test_a_file_replaced_by_a_link_after_ingest_is_not_read(tree):
    """Named alike, of the same size even: it is not what was ingested."""
    (row,), _ = listing(tree)
    assert media_source(row, RowReader()).read(1 << 20) == encoded(shade=1)
    (tree / "mine.jpg").unlink()
    (tree / "mine.jpg").symlink_to(tree.parent / "private" / "theirs.jpg")
    os.utime(tree.parent / "private" / "theirs.jpg", YEAR_AGO)
    source = media_source(row, RowReader())
    for use in (lambda: source.read(1 << 20), source.open, source.head, lambda: source.native_path().__enter__()):
        with pytest.raises(MediaError) as caught:
            use()
        assert caught.value.kind == "changed"


def test_a_folder_replaced_by_a_link_after_ingest_is_not_read(tree):
    (tree / "sub").mkdir()
    (tree / "sub" / "theirs.jpg").write_bytes(encoded(shade=5))
    rows, _ = listing(tree)
    (row,) = (r for r in rows if r["uri"].endswith("theirs.jpg"))
    (tree / "sub" / "theirs.jpg").unlink()
    (tree / "sub").rmdir()
    (tree / "sub").symlink_to(tree.parent / "private")
    os.utime(tree.parent / "private" / "theirs.jpg", YEAR_AGO)
    with pytest.raises(MediaError, match="not what was ingested"):
        media_source(row, RowReader()).read(1 << 20)


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_an_archive_replaced_by_a_link_after_ingest_is_not_read(tree, kind):
    for folder, shade in ((tree, 7), (tree.parent / "private", 8)):
        if kind == "tar":
            write_tar(folder / "a.tar", {"1.jpg": encoded(shade=shade)})
        else:
            pq.write_table(pa.table({"image": [encoded(shade=shade)]}), folder / "a.parquet")
    path = tree / f"a.{kind}"
    (row,), _ = listing(path)
    assert media_source(row, RowReader()).read(1 << 20) == encoded(shade=7)
    path.unlink()
    path.symlink_to(tree.parent / "private" / path.name)
    os.utime(tree.parent / "private" / path.name, YEAR_AGO)
    with pytest.raises(MediaError, match="not what was ingested"):
        media_source(row, RowReader()).read(1 << 20)


def test_a_repaired_file_is_read_without_another_ingest(tree):
    """Only what is reached through a link must be what was ingested: `vfm retry` after a repair goes on working."""
    (row,), _ = listing(tree)
    (tree / "mine.jpg").write_bytes(encoded("PNG", 9))
    assert media_source(row, RowReader()).read(1 << 20) == encoded("PNG", 9)


def test_a_source_that_is_named_through_links_is_read(tree):
    (tree.parent / "alias").symlink_to(tree)
    (row,), _ = listing(tree.parent / "alias")
    assert media_source(row, RowReader()).read(1 << 20) == encoded(shade=1)
    info = os.stat(tree / "mine.jpg")
    os.utime(tree / "mine.jpg", ns=(0, info.st_mtime_ns // 10**9 * 10**9))  # as another node's mount may show it
    assert media_source(row, RowReader()).read(1 << 20) == encoded(shade=1)


def test_within_is_judged_by_what_was_opened(tree):
    """Not by the path before, nor by text: /tree-2 is not in /tree."""
    (tree.parent / "tree-2").mkdir()
    (tree.parent / "tree-2" / "x.jpg").write_bytes(b"x")
    os.close(open_regular(str(tree / "mine.jpg"), os.path.realpath(tree)))
    os.close(open_regular(str(tree / "mine.jpg"), "/"))
    for path in (tree.parent / "tree-2" / "x.jpg", tree / ".." / "private" / "passwd"):
        with pytest.raises(OutsideError):
            open_regular(str(path), os.path.realpath(tree))


# -- what is no file ---------------------------------------------------------------------------------------------------


def put_pipe(path: Path) -> None:
    os.mkfifo(path)


def put_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(path.parent)  # the name of a socket is at most 108 bytes long
        try:
            server.bind(path.name)
        finally:
            os.chdir(here)


def put_device(path: Path) -> None:
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(5, 0))  # /dev/tty: reading it waits for a key
    except PermissionError:
        pytest.skip("needs the right to make devices: run as root")


def put_kernel_file(path: Path) -> None:
    if not os.path.exists("/proc/kmsg"):
        pytest.skip("needs /proc/kmsg: Linux")
    path.symlink_to("/proc/kmsg")  # a regular file by its type; reading it waits for the next message


SPECIAL = {"pipe": put_pipe, "socket": put_socket, "device": put_device, "kernel": put_kernel_file}
NAMES = ["x.jpg", "x.mp4", "noname", "x.tar", "x.parquet", "x.ts"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("put", SPECIAL.values(), ids=SPECIAL)
def test_nothing_special_is_waited_for_however_it_is_met(tree, put, name):
    put(tree / name)
    rows, _ = listing(tree)
    assert names(rows) == ["mine.jpg"]
    rows, tally = listing(f"{tree}/*")
    assert (names(rows), tally.left_out) == (["mine.jpg"], 1)
    (tree / "list.lst").write_text(f"mine.jpg\n{name}\n")
    rows, tally = listing(f"@{tree}/list.lst")
    assert (names(rows), tally.unreadable) == (["mine.jpg"], 1)
    assert "not a file" in tally.problems[0]
    rows, tally = listing(tree / name)
    assert (rows, tally.unreadable) == ([], 1)


@pytest.mark.parametrize("put", SPECIAL.values(), ids=SPECIAL)
def test_a_caption_or_a_list_that_is_special_is_not_waited_for(tree, put):
    put(tree / "mine.txt")
    (row,), _ = listing(tree, options=ListingOptions(captions="sidecar"))
    assert row["caption"] is None
    with pytest.raises(UsageError, match="not a file"):
        resolve_sources([f"@{tree}/mine.txt"])


@pytest.mark.parametrize("put", SPECIAL.values(), ids=SPECIAL)
@pytest.mark.parametrize("kind", ["jpg", "tar", "parquet", "lance"])
def test_something_special_in_place_of_an_asset_is_not_waited_for(tree, put, kind):
    path = tree / f"a.{kind}"
    if kind == "jpg":
        path.write_bytes(encoded())
    elif kind == "tar":
        write_tar(path, {"1.jpg": encoded()})
    elif kind == "parquet":
        pq.write_table(pa.table({"image": [encoded()]}), path)
    else:
        lance.write_dataset(pa.table({"image": [encoded()]}), path)
        (path,) = (path / "data").iterdir()
    (row,), _ = listing(tree / f"a.{kind}")
    path.unlink()
    put(path)
    with pytest.raises(MediaError, match="not a file"):
        media_source(row, RowReader()).read(1 << 20)
    if kind in ("jpg", "tar"):
        source = media_source(row, RowReader())
        for use in (source.open, source.head, lambda: source.native_path().__enter__()):
            with pytest.raises(MediaError, match="not a file"):
                use()
    if kind == "jpg":
        with pytest.raises(MediaError, match="not a file"):
            media_source(row, RowReader()).size()


# -- names -------------------------------------------------------------------------------------------------------------

LONG = "x" * 300 + ".jpg"
VERY_LONG = "x/" * 5000 + "x.jpg"
HOSTILE = {
    "NUL": ("a\0b.jpg", "NUL"),
    "NUL in an archive's name": ("a\0b.tar", "NUL"),
    "NUL behind an escape": ("file:///tmp/a%00b.jpg", "NUL"),
    "long": (LONG, "too long"),
    "too long": (VERY_LONG, "more than any name"),
    "folder that is a file": ("mine.jpg/x.jpg", "Not a directory"),
    "unknown store": ("nope://bucket/x.jpg", "nope"),
    "NUL in a key": ("s3://bucket/a\0b.jpg", "NUL"),
    "long key": ("s3://bucket/" + VERY_LONG, "more than any name"),
    "web": ("http://169.254.169.254/x.jpg", "web address"),
}


@pytest.mark.parametrize(("name", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_one_hostile_line_of_a_list_costs_that_line(tree, name, reason):
    (tree / "list.lst").write_text(f"mine.jpg\n{name}\nmine.jpg\n")
    rows, tally = listing(f"@{tree}/list.lst")
    assert (names(rows), tally.unreadable) == (["mine.jpg"] * 2, 1)
    assert reason in tally.problems[0]
    assert len(tally.problems[0]) < 600
    assert tally.problems[0].isprintable()


@pytest.mark.parametrize(("name", "reason"), HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("kind", ["parquet", "lance"])
def test_one_hostile_path_of_a_table_costs_that_row(tree, kind, name, reason):
    write_table(tree / f"t.{kind}", pa.table({"path": ["mine.jpg", name, "mine.jpg"], "text": ["a", "b", "c"]}))
    rows, tally = listing(tree / f"t.{kind}", options=ListingOptions(captions="column:text"))
    assert [(n, r["caption"]) for n, r in zip(names(rows), rows)] == [("mine.jpg", "a"), ("mine.jpg", "c")]
    assert tally.unreadable == 1
    assert reason in tally.problems[0]


def write_table(path: Path, table: pa.Table) -> None:
    lance.write_dataset(table, path) if path.suffix == ".lance" else pq.write_table(table, path)


@pytest.mark.parametrize("kind", ["parquet", "lance"])
@pytest.mark.parametrize(
    "escape", ["{private}/theirs.jpg", "../private/theirs.jpg", "file://{private}/theirs.jpg", "out"]
)
def test_a_table_names_no_file_outside_its_folder(tree, kind, escape):
    private = tree.parent / "private"
    (tree / "out").symlink_to(private / "theirs.jpg")
    name = escape.format(private=private)
    write_table(tree / f"t.{kind}", pa.table({"path": ["mine.jpg", name, str(tree / "mine.jpg")]}))
    rows, tally = listing(tree / f"t.{kind}")
    assert (names(rows), tally.refused) == (["mine.jpg"] * 2, {"outside its source": 1})
    assert "allow_outside=True" in tally.problems[0]
    rows, tally = listing(tree / f"t.{kind}", options=ListingOptions(allow_outside=True))
    assert (len(rows), tally.left_out) == (3, 0)


def test_a_table_in_a_tree_may_name_files_of_the_tree(tree):
    (tree / "meta").mkdir()
    pq.write_table(pa.table({"path": ["../mine.jpg"]}), tree / "meta" / "t.parquet")
    rows, tally = listing(tree)
    assert (names(rows), tally.left_out) == (["mine.jpg"] * 2, 0)


def test_paths_and_captions_that_are_no_unicode_cost_nothing_else(tree):
    """Parquet does not check what a writer calls text."""
    path = os.fsencode(tree) + b"/caf\xe9.jpg"
    Path(os.fsdecode(path)).write_bytes(encoded())
    cells = [b"mine.jpg", b"caf\xe9.jpg", b"\xff\xfe.jpg", b"mine.jpg"]
    data = pa.array(cells, pa.binary())
    text = pa.StringArray.from_buffers(len(cells), data.buffers()[1], data.buffers()[2])
    pq.write_table(pa.table({"path": text, "text": text}), tree / "t.parquet")
    rows, tally = listing(tree / "t.parquet", options=ListingOptions(captions="column:text"))
    assert names(rows) == ["mine.jpg", "mine.jpg", "caf%E9.jpg"]
    assert [r["caption"] for r in rows] == ["mine.jpg", "mine.jpg", "caf\ufffd.jpg"]
    assert tally.unreadable == 1


def test_a_binary_file_taken_for_a_list_is_read_in_bounded_memory_and_every_line_costs_itself(tree):
    (tree / "list.lst").write_bytes(b"mine.jpg\n" + b"\xff\x01" * 400_000 + b"\nmine.jpg\n" + b"y" * 300_000)
    rows, tally = listing(f"@{tree}/list.lst")
    assert (names(rows), tally.unreadable) == (["mine.jpg"] * 2, 2)


def test_messages_carry_no_control_characters_to_a_terminal(tree):
    (tree / "esc\x1b[31mred\r\n\u202egpj.tar").write_bytes(b"no tar" * 200)
    _, tally = listing(tree)
    assert tally.problems[0].isprintable()
    assert "\\x1b[31mred" in tally.problems[0]


# -- encodings ---------------------------------------------------------------------------------------------------------

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_captions_in_every_encoding_that_editors_write(tree, encoding):
    """Windows' editors begin a text with a mark, or write UTF-16: neither may be part of a caption."""
    (tree / "mine.txt").write_bytes("  A café, größer\r\n".encode(encoding))
    (row,), _ = listing(tree, options=ListingOptions(captions="sidecar"))
    assert row["caption"] == "A café, größer"
    members = {"1.jpg": encoded(), "1.txt": "A café".encode(encoding), "2.jpg": encoded()}
    members["2.json"] = '{"caption": "größer", "label": 4}'.encode(encoding)
    rows, _ = listing(write_tar(tree / "a.tar", members))
    assert [(r["caption"], r["label"]) for r in rows] == [("A café", None), ("größer", "4")]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_file_lists_in_every_encoding_that_editors_write(tree, encoding):
    (tree / "grün.jpg").write_bytes(encoded())
    (tree / "list.lst").write_bytes("mine.jpg\r\ngrün.jpg\r\n".encode(encoding))
    rows, tally = listing(f"@{tree}/list.lst")
    assert (names(rows), tally.left_out) == (["grün.jpg", "mine.jpg"], 0)


def test_captions_that_no_table_can_hold_are_mended(tree):
    """JSON spells halves of surrogate pairs, and anybody can write a caption of megabytes."""
    record = b'{"caption": "half \\ud83d pair"}'
    rows, _ = listing(write_tar(tree / "a.tar", {"1.jpg": encoded(), "1.json": record}))
    assert rows[0]["caption"] == "half ? pair"
    pq.write_table(pa.table({"image": [encoded()], "text": ["é" * (1 << 20)]}), tree / "t.parquet")
    rows, _ = listing(tree / "t.parquet", options=ListingOptions(captions="column:text"))
    assert len(rows[0]["caption"].encode()) == 1 << 20


def test_the_sidecar_of_an_upper_case_name_may_be_upper_case(tree):
    (tree / "A.JPG").write_bytes(encoded())
    (tree / "A.TXT").write_text("from a camera")
    rows, _ = listing(tree, options=ListingOptions(captions="sidecar"))
    assert {r["caption"] for r in rows if r["uri"].endswith("A.JPG")} == {"from a camera"}

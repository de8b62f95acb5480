"""Archives: members by offset and length, captions of WebDataset samples, and archives that lie."""

from __future__ import annotations

import io
import tarfile

import pytest

from pipelines.sources import ListingOptions
from tests.pipelines.sources.conftest import encoded, listing, write_tar


def test_a_member_is_the_bytes_at_its_offset(tmp_path):
    members = {f"s/{i:03}.jpg": encoded(shade=i) for i in range(100)}
    rows, _ = listing(write_tar(tmp_path / "a.tar", members))
    data = (tmp_path / "a.tar").read_bytes()
    assert {r["member"]: data[r["offset"] : r["offset"] + r["length"]] for r in rows} == members
    assert {(r["container"], r["uri"]) for r in rows} == {("tar", str(tmp_path / "a.tar"))}
    assert len({r["asset_id"] for r in rows}) == 100


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_in_every_tar_dialect(tmp_path, format):
    name = "folder/" * 12 + ("é" if format != tarfile.USTAR_FORMAT else "e") * 40 + ".jpg"
    with tarfile.open(tmp_path / "a.tar", "w", format=format) as archive:
        info = tarfile.TarInfo(name)
        info.size = len(encoded())
        archive.addfile(info, io.BytesIO(encoded()))
    (row,), _ = listing(tmp_path / "a.tar")
    assert row["member"] == name


def test_webdataset_siblings_caption_and_label_their_sample(tmp_path):
    members = {
        "000.jpg": encoded(),
        "000.txt": b"a red square\n",
        "000.cls": b"7",
        "001.json": b'{"caption": "from json", "label": 3}',
        "001.png": encoded("PNG"),
        "dir.v1/002.seg.png": encoded("PNG"),
        "003.jpg": encoded(),
        "003.json": b"[not an object",
    }
    rows, tally = listing(write_tar(tmp_path / "a.tar", members))
    assert [(r["member"], r["caption"], r["label"]) for r in rows] == [
        ("000.jpg", "a red square", "7"),
        ("001.png", "from json", "3"),
        ("dir.v1/002.seg.png", None, None),
        ("003.jpg", None, None),
    ]
    assert tally.unreadable == 0


def test_names_that_leave_the_archive_links_and_nested_archives_are_no_assets(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in {
            "../../etc/evil.jpg": encoded(),
            "/abs.jpg": encoded(),
            "in/../../x.jpg": encoded(),
            "bomb.tar": b"x" * 100,
            ".hidden.jpg": encoded(),
            "ok..jpg": encoded(),
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    rows, tally = listing(tmp_path / "a.tar")
    assert [r["member"] for r in rows] == ["ok..jpg"]
    assert tally.unreadable == 3
    assert tally.skipped == {"archive in an archive": 1, "hidden": 1, "link or special archive member": 1}


def test_limits_on_members_are_kept_and_said(tmp_path):
    path = write_tar(tmp_path / "a.tar", {f"{i}.jpg": b"x" * (10 + 90 * (i == 3)) for i in range(8)})
    rows, tally = listing(path, options=ListingOptions(max_members=5, max_member_bytes=50))
    assert [r["member"] for r in rows] == ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.jpg"]
    assert "over the limit of 50" in tally.problems[0]
    assert "more than 5 members" in tally.problems[1]


# A member takes three blocks: its header, and 600 bytes that fill the next and 88 bytes of the third.
@pytest.mark.parametrize(("keep", "whole_members"), [(512 * 2, 0), (512 * 4, 1), (512 * 5, 1), (512 * 6, 2)])
def test_a_cut_archive_keeps_its_whole_members_and_is_reported(tmp_path, keep, whole_members):
    whole = write_tar(tmp_path / "w.tar", {f"{i}.jpg": bytes([i + 1]) * 600 for i in range(4)}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:keep])
    rows, tally = listing(tmp_path / "cut.tar")
    assert [r["member"] for r in rows] == ["0.jpg", "1.jpg"][:whole_members]
    assert tally.unreadable == 1
    assert "cut" in tally.problems[0]


def test_damage_in_the_middle_is_not_taken_for_the_end(tmp_path):
    data = bytearray(write_tar(tmp_path / "a.tar", {f"{i}.jpg": b"x" * 600 for i in range(4)}).read_bytes())
    data[512 * 6 : 512 * 6 + 512] = b"\x99" * 512
    (tmp_path / "a.tar").write_bytes(data)
    rows, tally = listing(tmp_path / "a.tar")
    assert [r["member"] for r in rows] == ["0.jpg", "1.jpg"]
    assert f"damaged at byte {512 * 6:,}" in tally.problems[0]


def test_a_name_record_of_gigabytes_is_refused_without_reading_it(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 8 << 30
    with open(tmp_path / "a.tar", "wb") as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(9 << 30)  # sparse: takes no disk
    rows, tally = listing(tmp_path / "a.tar")
    assert rows == []
    assert "8,589,934,592 bytes of names" in tally.problems[0]


def test_a_file_that_is_no_tar_is_reported(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"hello" * 1000)
    rows, tally = listing(tmp_path / "a.tar")
    assert (rows, tally.unreadable) == ([], 1)

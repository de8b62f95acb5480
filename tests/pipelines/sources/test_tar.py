"""Archives: members by offset and length, captions of WebDataset samples, and archives that lie."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.sources import ListingOptions
from pipelines.sources.samples import Member, caption_and_label, group_samples
from tests.conftest import chaos_count
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


# -- whose caption is whose --------------------------------------------------------------------------------------------


def captions(path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> dict[str, str | None]:
    """Caption of each picture of a shard, by name."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return {r["member"]: r["caption"] for r in listing(path)[0]}


@pytest.mark.parametrize(
    "name",
    [
        "photo.{:04d}",
        "set_v1.2_{}",
        "2024.01.05-{}",
        "a.b.c.d.{}",
        "Dr. {}",
        "photo_{:04d}",
        "folder.v1/{:04d}",
        "x{}.v2.final",
        "{}.5",
    ],
)
@pytest.mark.parametrize("count", [1, 4, 70, 300])
def test_each_picture_gets_its_own_caption_wherever_names_have_dots(tmp_path, name, count):
    members = {}
    for i in range(count):
        members[f"{name.format(i)}.jpg"] = b"x"
        members[f"{name.format(i)}.txt"] = f"no {i}".encode()
    found = captions(tmp_path / "a.tar", members)
    assert found == {f"{name.format(i)}.jpg": f"no {i}" for i in range(count)}


@pytest.mark.parametrize("texts_first", [False, True])
@pytest.mark.parametrize("missing", [0, 3, 63, 64])
def test_a_picture_without_a_caption_gets_none_of_its_neighbours(tmp_path, missing, texts_first):
    members = {}
    for i in range(130):
        pair = {f"photo.{i:04d}.jpg": b"x"}
        if i != missing:
            pair[f"photo.{i:04d}.txt"] = f"no {i}".encode()
        members |= dict(sorted(pair.items(), reverse=texts_first))
    found = captions(tmp_path / "a.tar", members)
    assert found == {f"photo.{i:04d}.jpg": None if i == missing else f"no {i}" for i in range(130)}


@pytest.mark.parametrize("stem", ["{:03}", "clip.v2.{:03}"])
def test_endings_of_several_parts_share_their_samples_caption(tmp_path, stem):
    members = {}
    for i in range(100):
        key = stem.format(i)
        members |= {f"{key}.jpg": b"x", f"{key}.SEG.PNG": b"x", f"{key}.depth.npy": b"x", f"{key}.TXT": b"no %d" % i}
    found = captions(tmp_path / "a.tar", members)
    assert len(found) == 200
    assert found == {name: f"no {int(name.replace('clip.v2.', '')[:3])}" for name in found}


def test_several_pictures_of_a_sample_share_its_caption(tmp_path):
    members = {}
    for i in range(10):
        members |= {f"{i:03}.{n}.jpg": b"x" for n in range(3)} | {f"{i:03}.txt": b"no %d" % i}
    assert captions(tmp_path / "a.tar", members) == {f"{i:03}.{n}.jpg": f"no {i}" for i in range(10) for n in range(3)}


def test_a_caption_with_a_role_of_its_own_is_its_samples(tmp_path):
    members = {}
    for i in range(10):
        members |= {f"{i:03}.jpg": b"x", f"{i:03}.caption.txt": b"no %d" % i}
    assert captions(tmp_path / "a.tar", members) == {f"{i:03}.jpg": f"no {i}" for i in range(10)}


def test_names_that_happen_to_begin_alike_are_no_sample(tmp_path):
    members = [(f"{i}{half}.jpg", b"x") for i in range(1, 9) for half in ("", ".5")]
    members += [(f"{i}.txt", b"whole %d" % i) for i in range(1, 9)]
    people = [
        ("John.jpg", b"x"),
        ("John.Smith.jpg", b"x"),
        ("John.txt", b"John"),
        ("Ann.jpg", b"x"),
        ("Ann.txt", b"Ann"),
    ]
    found = captions(tmp_path / "a.tar", sorted(members))
    assert found == {f"{i}{half}.jpg": None if half else f"whole {i}" for i in range(1, 9) for half in ("", ".5")}
    assert captions(tmp_path / "b.tar", people) == {"John.jpg": "John", "John.Smith.jpg": None, "Ann.jpg": "Ann"}
    series = [(f"photo.{i}.jpg", b"x") for i in range(5)] + [("photo.txt", b"of which?")]
    assert set(captions(tmp_path / "c.tar", series).values()) == {None}


def test_shards_that_were_joined_keep_both_members_of_a_name_with_their_own_captions(tmp_path):
    """`cat`, or a writer that restarts its numbers: by name alone, every picture of the second half would be lost."""
    half = [[(f"{i}.jpg", bytes([n, i])), (f"{i}.txt", b"%d of %d" % (i, n))] for n in range(2) for i in range(3)]
    path = tmp_path / "a.tar"
    assert captions(path, [member for sample in half for member in sample]) == {
        f"{i}.jpg{again}": f"{i} of {n}" for n, again in enumerate(("", " (2)")) for i in range(3)
    }
    data = path.read_bytes()
    assert {r["member"]: data[r["offset"] :][:2] for r in listing(path)[0]} == {
        f"{i}.jpg{again}": bytes([n, i]) for n, again in enumerate(("", " (2)")) for i in range(3)
    }
    alike = [("1.jpg", b"a"), ("1.txt", b"first"), ("1.jpg", b"b"), ("1.txt", b"second")]
    assert captions(tmp_path / "b.tar", alike) == {"1.jpg": "first", "1.jpg (2)": "second"}


_PARTS = st.lists(st.sampled_from(["0", "1", "23", "v1", "seg", "photo", "a b", ""]), min_size=1, max_size=4)


@given(st.lists(st.tuples(_PARTS.map(".".join), st.booleans()), min_size=1, max_size=40, unique_by=lambda t: t[0]))
@settings(max_examples=chaos_count(60, 3000))
def test_no_picture_that_has_a_caption_of_its_name_gets_another(items):
    """Whatever the names: NAME.txt beside NAME.jpg is its caption. The oracle is that rule alone."""
    members, at = [], 0
    for stem, has_text in items:
        for ending in ("jpg", "txt")[: 1 + has_text]:
            members.append(Member(f"d/{stem}.{ending}", at, 1, stem.encode() if ending == "txt" else None))
            at += 1
    seen = []
    for sample, naming in group_samples(iter(members)):
        pictures = [m for m in sample.members if m.ending == "jpg"]
        for picture in pictures:
            seen.append((picture, caption_and_label(picture, sample, naming, pictures)[0]))
    assert [picture for picture, _ in seen] == [m for m in members if m.ending == "jpg"]
    told = dict(items)
    for picture, caption in seen:
        stem = picture.stem.removeprefix("d/")
        if told[stem]:
            assert caption == (stem.strip() or None)


# -- archives that lie -------------------------------------------------------------------------------------------------


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info


def raw_tar(path, *blocks: bytes):
    path.write_bytes(b"".join(blocks) + bytes(1024))
    return path


GOOD = header("good.jpg", 512).tobuf(tarfile.GNU_FORMAT) + b"x" * 512


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [-512, -1024, -(1 << 40)])
def test_a_header_with_a_size_below_zero_does_not_lead_round_and_round(tmp_path, size, kind):
    block = bytearray(header("a.jpg", 0, kind).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 4 + size.to_bytes(8, "big", signed=True)
    total = sum(block[:148]) + sum(block[156:]) + 8 * 32
    block[148:156] = b"%06o\0 " % total
    rows, tally = listing(raw_tar(tmp_path / "a.tar", GOOD, bytes(block), GOOD))
    assert [r["member"] for r in rows] == ["good.jpg"]
    assert tally.unreadable == 1


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_headers_upon_headers_end_that_archive_only(tmp_path, kind):
    record = b"9 path=a\n" if kind == tarfile.XHDTYPE else b"a.jpg\0"
    block = header("x", len(record), kind).tobuf(tarfile.GNU_FORMAT) + record.ljust(512, b"\0")
    raw_tar(tmp_path / "bad.tar", GOOD, block * 5000, GOOD)
    raw_tar(tmp_path / "ok.tar", GOOD)
    rows, tally = listing(tmp_path)
    assert {r["member"] for r in rows} == {"good.jpg"}
    assert len(rows) == 2
    assert tally.unreadable == 1


@pytest.mark.parametrize(("name", "reason"), [("a\0b.jpg", "NUL"), ("x" * 5000 + ".jpg", "5,004 bytes")])
def test_a_member_of_a_hostile_name_costs_that_member(tmp_path, name, reason):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for each in ("1.jpg", name, "2.jpg"):
            info = header(each, 1)
            info.pax_headers = {"path": each}
            archive.addfile(info, io.BytesIO(b"x"))
    rows, tally = listing(tmp_path / "a.tar")
    assert ([r["member"] for r in rows], tally.unreadable) == (["1.jpg", "2.jpg"], 1)
    assert reason in tally.problems[0]


def test_a_sparse_picture_is_reported_and_its_neighbours_are_kept(tmp_path):
    """GNU tar --sparse stores a picture without its zeros: its bytes are not those at its offset."""
    block = bytearray(header("s.mp4", 512, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"%011o\0" % 4096
    total = sum(block[:148]) + sum(block[156:]) + 8 * 32
    block[148:156] = b"%06o\0 " % total
    rows, tally = listing(raw_tar(tmp_path / "a.tar", GOOD, bytes(block) + b"x" * 512, GOOD))
    assert [r["member"] for r in rows] == ["good.jpg", "good.jpg (2)"]
    assert "s.mp4: is stored sparse" in tally.problems[0]


@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz"])
def test_a_compressed_archive_under_a_plain_name_says_so(tmp_path, mode):
    with tarfile.open(tmp_path / "a.tar", mode) as archive:
        archive.addfile(header("1.jpg", 1), io.BytesIO(b"x"))
    rows, tally = listing(tmp_path / "a.tar")
    assert (rows, tally.unreadable) == ([], 1)
    assert "is compressed" in tally.problems[0]


@pytest.mark.chaos
def test_mutated_archives_end_and_members_lie_within_them(tmp_path):
    """Any bytes: a listing ends, raises nothing, and every member lies inside the archive."""
    random = np.random.default_rng(0)
    whole = np.frombuffer(
        write_tar(tmp_path / "w.tar", {f"{'n' * 120}{i}.jpg": b"x" * (i * 300) for i in range(8)}).read_bytes(),
        np.uint8,
    )
    for number in range(chaos_count(150, 10_000)):
        data = whole.copy()
        for at in random.integers(0, len(data), random.integers(1, 12)):
            data[at] = random.choice([0, 0xFF, 0x80, ord("7"), ord("L"), ord("x"), random.integers(256)])
        (tmp_path / "m.tar").write_bytes(data.tobytes()[: random.integers(1, len(data) + 1)])
        size = (tmp_path / "m.tar").stat().st_size
        rows, _ = listing(tmp_path / "m.tar", options=ListingOptions(max_members=1000))
        assert len(rows) < 1000, number
        assert all(0 <= r["offset"] <= r["offset"] + r["length"] <= size for r in rows), number

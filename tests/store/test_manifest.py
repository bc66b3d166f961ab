"""The digest of an artifact: a function of its files and kind, and of nothing else."""

import hashlib
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from caravan.errors import StoreError
from caravan.store.manifest import (
    FileEntry,
    check_path,
    make_manifest,
    parse_manifest,
    read_manifest_of,
)

NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789._-éß ", min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)
TREES = st.dictionaries(NAMES, st.binary(max_size=64), min_size=1, max_size=5)


def digest_of(tree, kind="dataset", order=None):
    with tempfile.TemporaryDirectory() as directory:
        for name in order or tree:
            path = Path(directory, "sub" if name.startswith("a") else "", name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(tree[name])
        return read_manifest_of(Path(directory), kind).digest


@settings(max_examples=40, deadline=None)
@given(TREES, st.data())
def test_the_order_of_writing_changes_nothing(tree, data):
    order = data.draw(st.permutations(list(tree)))

    assert digest_of(tree, order=order) == digest_of(tree)


@settings(max_examples=60, deadline=None)
@given(TREES, st.data())
def test_every_byte_counts(tree, data):
    name = data.draw(st.sampled_from(sorted(tree)))
    content = tree[name]
    at = data.draw(st.integers(0, len(content)))
    changes = [content[:at] + b"x" + content[at:], content[:at] + content[at + 1 :]]
    if at < len(content):
        changes.append(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    changed = data.draw(st.sampled_from(changes))
    assume(changed != content)

    assert digest_of(tree | {name: changed}) != digest_of(tree)


@settings(max_examples=30, deadline=None)
@given(TREES, NAMES)
def test_names_and_kind_count(tree, name):
    assume(name not in tree)
    renamed = {name if n == min(tree) else n: content for n, content in tree.items()}

    assert digest_of(renamed) != digest_of(tree)
    assert digest_of(tree, kind="model") != digest_of(tree)


def test_the_digest_is_that_of_the_manifest_and_worked_by_hand(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    sha = hashlib.sha256(b"{}\n").hexdigest()
    expected = f'{{"files":[{{"path":"rows.jsonl","sha256":"{sha}","size":3}}],"kind":"dataset"}}'

    manifest = read_manifest_of(tmp_path, "dataset")

    assert manifest.to_bytes() == expected.encode()
    assert manifest.digest == hashlib.sha256(expected.encode()).hexdigest()
    assert parse_manifest(manifest.to_bytes(), manifest.digest) == manifest
    with pytest.raises(StoreError, match=r"manifest\.json is corrupted"):
        parse_manifest(manifest.to_bytes() + b" ", manifest.digest)


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "a/../b", "..", "a//b", "./a", "a\\b", "a\nb", "a\x00b", "a/", "\ud800",
     "x" * 256],
)  # fmt: skip
def test_unsafe_paths_are_refused(path):
    with pytest.raises(StoreError, match="file name"):
        check_path(path)
    with pytest.raises(StoreError):
        make_manifest("dataset", [FileEntry(path, "0" * 64, 1)])


def test_a_file_in_the_way_of_another_is_refused():
    files = [FileEntry("a", "0" * 64, 1), FileEntry("a/b", "0" * 64, 1)]
    with pytest.raises(StoreError, match="also a file"):
        make_manifest("dataset", files)
    with pytest.raises(StoreError, match="occurs twice"):
        make_manifest("dataset", files[:1] * 2)
    with pytest.raises(StoreError, match="at least one file"):
        make_manifest("dataset", [])


def test_links_and_devices_are_refused(tmp_path):
    for name, make in {
        "link": lambda p: p.symlink_to("/etc/passwd"),
        "directory link": lambda p: p.symlink_to("/etc"),
        "pipe": os.mkfifo,
    }.items():
        directory = tmp_path / name
        directory.mkdir()
        (directory / "rows.jsonl").write_text("{}\n")
        make(directory / "x")
        with pytest.raises(StoreError, match="holds plain files only"):
            read_manifest_of(directory, "dataset")

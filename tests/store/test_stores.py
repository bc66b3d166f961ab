"""What holds for every store: the directory and a real S3 server."""

import os
import signal
import subprocess
import textwrap
import time
from datetime import timedelta
from pathlib import Path

import pytest

from caravan.errors import StoreError
from caravan.settings import Settings
from caravan.store import open_store
from forked import Script


@pytest.fixture(params=["directory", "s3"])
def store_settings(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("s3_settings")
    return Settings(home=tmp_path / "home", store_url=str(tmp_path / "store"))


@pytest.fixture
def store(store_settings):
    return open_store(settings=store_settings)


@pytest.fixture
def model(tmp_path):
    directory = tmp_path / "model"
    (directory / "shards").mkdir(parents=True)
    (directory / "config.json").write_text('{"hidden_size": 8}')
    (directory / "shards" / "one.safetensors").write_bytes(bytes(range(256)) * 4096)
    (directory / "empty").write_bytes(b"")
    return directory


def damage(store, digest, path, content):
    """Change what the store holds, behind its back; None removes the file."""
    if hasattr(store, "root"):
        target = store._object(digest) / path
        if not target.exists():
            target.parent.chmod(0o755)
        else:
            target.chmod(0o644)
            target.parent.chmod(0o755)
        target.unlink() if content is None else target.write_bytes(content)
    else:
        key = f"{store._object(digest)}/{path}"
        if content is None:
            store._client.remove_object(store._bucket, key)
        else:
            store._write(key, content)


def test_what_was_put_comes_back_and_nothing_is_left_over(store, model):
    artifact = store.put(model, "model")

    assert (artifact.kind, artifact.files) == ("model", 3)
    assert artifact.size_bytes == 256 * 4096 + len('{"hidden_size": 8}')
    assert store.exists(artifact.digest)
    assert store.uri(artifact.digest).endswith(f"/{artifact.digest}")
    fetched = store.fetch(artifact.digest)
    for path in ("config.json", "shards/one.safetensors", "empty"):
        assert (fetched / path).read_bytes() == (model / path).read_bytes()
    assert [f.path for f in store.manifest(artifact.digest).files] == [
        "config.json", "empty", "shards/one.safetensors",
    ]  # fmt: skip
    assert leftovers(store) == []


def leftovers(store):
    if hasattr(store, "root"):
        return list((store.root / "tmp").iterdir())
    return store._list(f"{store._prefix}pending/")


def test_putting_the_same_again_changes_nothing(store, model):
    first = store.put(model, "model")
    before = (store.fetch(first.digest) / "config.json").stat().st_mtime_ns

    assert store.put(model, "model") == first
    assert (store.fetch(first.digest) / "config.json").stat().st_mtime_ns == before


def test_another_kind_is_another_artifact(store, model):
    assert store.put(model, "model").digest != store.put(model, "report").digest


def test_what_is_not_there(store):
    digest = "0" * 64
    assert not store.exists(digest)
    for ask in (store.fetch, store.manifest, store.verify):
        with pytest.raises(StoreError, match=f"has no artifact {digest}"):
            ask(digest)
    store.delete(digest)
    with pytest.raises(StoreError, match="is not a digest"):
        store.fetch("../../etc")


def test_what_is_deleted_is_gone_and_can_be_put_again(store, model):
    digest = store.put(model, "model").digest
    store.fetch(digest)
    store.delete(digest)

    assert not store.exists(digest)
    with pytest.raises(StoreError, match="has no artifact"):
        store.fetch(digest)
    assert store.put(model, "model").digest == digest
    assert (store.fetch(digest) / "empty").exists()


@pytest.mark.parametrize(
    ("path", "content", "message"),
    [
        ("files/config.json", b'{"hidden_size": 9}', "file config.json is corrupted"),
        ("files/config.json", b"", "file config.json is corrupted"),
        ("files/shards/one.safetensors", None, r"file shards/one.safetensors is missing"),
        ("manifest.json", b"{}", "manifest.json is corrupted"),
    ],
)
def test_damage_is_named_and_mended_by_putting_again(store, model, path, content, message):
    digest = store.put(model, "model").digest
    damage(store, digest, path, content)

    for ask in (store.verify, store.fetch):
        with pytest.raises(StoreError, match=f"artifact {digest}: {message}") as caught:
            ask(digest)
        assert "and resume the run" in str(caught.value)
        assert digest in str(caught.value).split("delete ")[1]

    store.put(model, "model")
    store.verify(digest)
    store.fetch(digest)
    assert leftovers(store) == []


def test_unsafe_content_is_refused_and_nothing_is_left(store, model):
    (model / "link").symlink_to("/etc/passwd")

    with pytest.raises(StoreError, match="link is a symbolic link"):
        store.put(model, "model")
    assert leftovers(store) == []


PUT_AND_DIE = textwrap.dedent("""
    import os, signal, sys
    from pathlib import Path
    from caravan.store import open_store, directory
    import caravan.store.directory, caravan.store.s3
    store = open_store()
    def die(*_): os.kill(os.getpid(), signal.SIGKILL)
    def write(key, content, write=getattr(store, "_write", None)):
        die() if key.endswith("manifest.json") else write(key, content)
    store._commit, store._write = die, write
    store.put(Path(sys.argv[1]), "model")
""")


def test_a_writer_killed_before_the_end_leaves_nothing_visible(store, store_settings, model):
    killed = Script(PUT_AND_DIE, str(model), env=os.environ | store_settings.environment())
    assert killed.wait() == -signal.SIGKILL, killed.stderr
    assert leftovers(store) != []

    if hasattr(store, "root"):
        assert not (store.root / "objects").exists()
        store.clean()
    else:
        assert not any(key.endswith("manifest.json") for key in store._list(store._prefix))
        time.sleep(1.1)  # the server dates objects in whole seconds
        store.clean(abandoned_after=timedelta(0))
        assert store._list(store._prefix) == []

    assert leftovers(store) == []
    artifact = store.put(model, "model")
    store.verify(artifact.digest)


def test_many_writers_of_one_artifact_agree(store, store_settings, model):
    script = (
        "import sys; from pathlib import Path; from caravan.store import open_store\n"
        "store = open_store(); artifact = store.put(Path(sys.argv[1]), 'model')\n"
        "store.fetch(artifact.digest); print(artifact.digest)"
    )
    environment = os.environ | store_settings.environment()
    writers = [Script(script, str(model), env=environment) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0], writers[0].stderr
    digests = {writer.stdout for writer in writers}

    assert digests == {store.put(model, "model").digest + "\n"}
    assert leftovers(store) == []


# --- the directory ------------------------------------------------------------------------------


def test_a_published_artifact_cannot_be_written(tmp_path, model):
    store = open_store(tmp_path / "store")
    fetched = store.fetch(store.put(model, "model").digest)

    for path in [fetched, *fetched.rglob("*")]:
        assert path.stat().st_mode & 0o222 == 0


def test_a_file_that_does_not_belong_is_noticed(tmp_path, model):
    store = open_store(tmp_path / "store")
    digest = store.put(model, "model").digest
    damage(store, digest, "files/extra", b"")

    with pytest.raises(StoreError, match="file extra does not belong to it"):
        store.fetch(digest)


def test_a_living_writers_directory_is_left_alone(tmp_path):
    store = open_store(tmp_path / "store")
    with store._scratch() as scratch:
        other = open_store(tmp_path / "store")
        other.clean()
        assert scratch.exists()
    assert not scratch.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one mebibyte."""
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"may not mount here: {made.stderr.decode()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_is_named_and_nothing_half_written_is_visible(small_disk, model):
    (model / "large").write_bytes(bytes(1 << 20))
    store = open_store(small_disk / "store")

    with pytest.raises(StoreError, match=r"No space left.*free some space, then resume") as caught:
        store.put(model, "model")

    assert str(small_disk) in str(caught.value)
    assert not (store.root / "objects").exists()
    assert leftovers(store) == []
    (model / "large").unlink()
    (model / "shards" / "one.safetensors").write_bytes(b"small")
    store.fetch(store.put(model, "model").digest)


def test_a_read_only_store_still_reads_and_says_how_to_write(small_disk, tmp_path, model):
    (model / "shards" / "one.safetensors").write_bytes(b"small")
    store = open_store(small_disk / "store")
    digest = store.put(model, "model").digest
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)

    assert (store.fetch(digest) / "config.json").exists()
    (model / "config.json").write_text("other")
    with pytest.raises(StoreError, match=r"Read-only.*CARAVAN_STORE_URL"):
        store.put(model, "model")
    with pytest.raises(StoreError, match=r"Read-only.*CARAVAN_STORE_URL"):
        store.delete(digest)


def test_a_file_too_large_for_the_file_system(tmp_path, model):
    script = (
        "import resource, sys; from pathlib import Path; from caravan.store import open_store\n"
        "from caravan.errors import StoreError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: open_store(sys.argv[1]).put(Path(sys.argv[2]), 'model')\n"
        "except StoreError as error: print(error)"
    )
    done = Script(script, str(tmp_path / "store"), str(model), env=os.environ)
    assert done.wait() == 0, done.stderr

    assert "File too large; free some space, then resume the run" in done.stdout
    assert not (tmp_path / "store" / "objects").exists()


def test_a_store_that_is_a_file(tmp_path, model):
    (tmp_path / "store").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        open_store(tmp_path / "store").put(model, "model")


def test_a_store_by_file_url(tmp_path, model):
    store = open_store(f"file://{tmp_path}/my%20store")
    store.put(model, "model")
    assert (tmp_path / "my store" / "objects").is_dir()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/path", "use a directory or s3://bucket/prefix"),
        ("file://host/path", "three slashes"),
        ("s3:///prefix", "names no bucket"),
        ("s3://ab/prefix", "'ab' cannot be a bucket's name"),
        ("s3://bucket/prefix", "CARAVAN_S3_ENDPOINT='' is not an endpoint"),
    ],
)
def test_urls_that_cannot_be_used(url, message):
    with pytest.raises(StoreError, match=message):
        open_store(url, Settings())


# --- S3 -----------------------------------------------------------------------------------------


def changed(settings, **changes):
    return Settings(**{n: getattr(settings, n) for n in type(settings).model_fields} | changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store_url": "s3://no-such-bucket/x"}, "NoSuchBucket; create the bucket, or correct"),
        ({"s3_access_key": "nobody"}, "check CARAVAN_S3_ACCESS_KEY"),
        ({"s3_secret_key": "wrong"}, "check .*CARAVAN_S3_SECRET_KEY"),
    ],
)
def test_what_s3_refuses(s3_settings, model, changes, message):
    store = open_store(settings=changed(s3_settings, **changes))

    for ask in (lambda: store.put(model, "model"), lambda: store.fetch("0" * 64)):
        with pytest.raises(StoreError, match=message) as caught:
            ask()
        assert "appsecret" not in str(caught.value)


@pytest.mark.parametrize("missing", ["s3_access_key", "s3_secret_key"])
def test_missing_credentials_are_named_before_anything_is_asked(s3_settings, missing):
    with pytest.raises(StoreError, match="set CARAVAN_S3_ACCESS_KEY and CARAVAN_S3_SECRET_KEY"):
        open_store(settings=changed(s3_settings, **{missing: ""}))


def test_an_endpoint_that_does_not_answer(s3_settings, model):
    settings = changed(s3_settings, s3_endpoint="http://127.0.0.1:9")

    with pytest.raises(
        StoreError,
        match=r"the endpoint does not answer as it should .*refused.*CARAVAN_S3_ENDPOINT",
    ):
        open_store(settings=settings).put(model, "model")


def test_what_was_fetched_once_is_read_from_the_cache_and_verified_there(s3_settings, model):
    store = open_store(settings=s3_settings)
    digest = store.put(model, "model").digest
    cached = store.fetch(digest)
    assert s3_settings.cache_dir in cached.parents
    target = Path(cached / "config.json")
    cached.chmod(0o755)
    target.chmod(0o644)
    target.write_text("damaged")

    assert (store.fetch(digest) / "config.json").read_text() == '{"hidden_size": 8}'
    store.delete(digest)
    with pytest.raises(StoreError, match="has no artifact"):
        store.fetch(digest)


def test_a_file_in_place_of_the_store_is_told_with_the_way_out(tmp_path, model):
    (tmp_path / "taken").write_text("")

    with pytest.raises(StoreError, match="name a directory in CARAVAN_STORE_URL"):
        open_store(tmp_path / "taken").put(model, "model")

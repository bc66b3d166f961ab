"""The store in a bucket of any S3 endpoint.

    PREFIX/objects/3fa9.../files/model.safetensors
    PREFIX/objects/3fa9.../manifest.json      written last: without it there is no artifact
    PREFIX/pending/3fa9...                    there while an artifact is being written

What is fetched is kept in a directory store beside the work directory, and verified there.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from caravan.errors import StoreError, StoreUnavailableError, require
from caravan.settings import Settings
from caravan.store.base import Stored
from caravan.store.directory import DirectoryStore
from caravan.store.manifest import (
    Artifact,
    Manifest,
    check_digest,
    copy_stream,
    parse_manifest,
    read_manifest_of,
)

if TYPE_CHECKING:
    from minio import Minio

BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
ABANDONED_AFTER = timedelta(days=1)
"""A write that has been pending for longer belongs to a writer that died."""
CONNECT_TIMEOUT_SECONDS = 5.0
READ_TIMEOUT_SECONDS = 120.0
RETRIES = 3

ADVICE = {
    "NoSuchBucket": "create the bucket, or correct CARAVAN_STORE_URL",
    "AccessDenied": "these credentials may not use this bucket: check CARAVAN_S3_ACCESS_KEY, "
    "CARAVAN_S3_SECRET_KEY and the bucket's policy",
    "InvalidAccessKeyId": "check CARAVAN_S3_ACCESS_KEY",
    "SignatureDoesNotMatch": "check CARAVAN_S3_SECRET_KEY",
}


@dataclass(frozen=True)
class S3Object:
    key: str
    size_bytes: int
    modified_at: datetime


class S3Store:
    def __init__(self, url: str, settings: Settings) -> None:
        """`url` is s3://bucket/prefix; endpoint and credentials come from `settings`.

        Raises:
            StoreError: the URL, the endpoint or the credentials are missing or malformed.
            MissingExtraError: the S3 client is not installed.
        """
        parts = urlsplit(url)
        self._bucket, prefix = parts.netloc, parts.path.strip("/")
        if not self._bucket:
            raise StoreError(f"store {url!r} names no bucket; write s3://bucket/prefix")
        if not BUCKET.fullmatch(self._bucket):
            raise StoreError(
                f"store {url!r}: {self._bucket!r} cannot be a bucket's name, which has 3 to 63 "
                "lower-case letters, digits, dots and hyphens"
            )
        self._prefix = f"{prefix}/" if prefix else ""
        self.url = f"s3://{self._bucket}/{prefix}".rstrip("/")
        self._client = _client(self.url, settings)
        self._cache = DirectoryStore(settings.cache_dir)

    def uri(self, digest: str) -> str:
        return f"s3://{self._bucket}/{self._object(digest)}"

    def exists(self, digest: str) -> bool:
        base = self._object(digest)
        with self._plain_errors("looking for an artifact"):
            content = self._read(f"{base}/manifest.json")
        if content is None:
            return False
        present = {o.key: o.size_bytes for o in self._objects(f"{base}/files/")}
        try:
            files = parse_manifest(content, digest).files
        except StoreError:
            return False
        return all(present.get(f"{base}/files/{file.path}") == file.size for file in files)

    def stored(self) -> Iterator[Stored]:
        pending = {key.rpartition("/")[2] for key in self.keys("pending/")}
        found: dict[str, list[S3Object]] = {}
        for item in self.objects("objects/"):
            found.setdefault(item.key.split("/")[1], []).append(item)
        for digest, items in found.items():
            if digest not in pending:
                newest = max(item.modified_at for item in items)
                yield Stored(digest, sum(item.size_bytes for item in items), newest)
        for copy in self._cache.stored():  # of what was deleted from another machine
            if copy.digest not in found and copy.digest not in pending:
                yield copy

    def manifest(self, digest: str) -> Manifest:
        with self._plain_errors(f"reading artifact {digest}"):
            content = self._read(f"{self._object(digest)}/manifest.json")
        if content is None:
            raise StoreError(f"store {self.url} has no artifact {digest}")
        with self._way_out(digest):
            return parse_manifest(content, digest)

    def fetch(self, digest: str) -> Path:
        if self._cache.exists(digest):
            try:
                return self._cache.fetch(digest)
            except StoreError:
                self._cache.delete(digest)  # a copy only: fetched again below
        manifest = self.manifest(digest)
        with self._download_directory() as directory:
            for entry in manifest.files:
                target = directory / "files" / entry.path
                with self._plain_errors(f"reading artifact {digest}"):
                    self._download(digest, entry.path, target)
            with self._way_out(digest):
                _compare(digest, manifest, read_manifest_of(directory / "files", manifest.kind))
            self._cache.put(directory / "files", manifest.kind)
        return self._cache.fetch(digest)

    def verify(self, digest: str) -> None:
        manifest = self.manifest(digest)
        present = set(self._list(f"{self._object(digest)}/files/"))
        for entry in manifest.files:
            key = f"{self._object(digest)}/files/{entry.path}"
            with self._way_out(digest):
                if key not in present:
                    raise StoreError(f"artifact {digest}: file {entry.path} is missing")
                with self._plain_errors(f"reading artifact {digest}"):
                    found = self._stream(key, entry.path)
                if found != entry:
                    raise StoreError(f"artifact {digest}: file {entry.path} is corrupted")

    def put(self, directory: Path, kind: str) -> Artifact:
        manifest = read_manifest_of(directory, kind)
        digest = manifest.digest
        if self._is_sound(digest):
            return manifest.artifact
        self.clean()
        base, pending = self._object(digest), f"{self._prefix}pending/{digest}"
        with self._plain_errors(f"publishing {directory.name}"):
            self._write(pending, b"")
            for entry in manifest.files:
                self._client.fput_object(
                    self._bucket, f"{base}/files/{entry.path}", str(directory / entry.path)
                )
            self._write(f"{base}/manifest.json", manifest.to_bytes())
            self._client.remove_object(self._bucket, pending)
        return manifest.artifact

    def delete(self, digest: str) -> None:
        base = self._object(digest)
        with self._plain_errors(f"deleting artifact {digest}"):
            self._client.remove_object(self._bucket, f"{base}/manifest.json")
            for key in self._list(f"{base}/"):
                self._client.remove_object(self._bucket, key)
        self._cache.delete(digest)

    def clean(self, abandoned_after: timedelta = ABANDONED_AFTER) -> None:
        limit = datetime.now(UTC) - abandoned_after
        with self._plain_errors("cleaning up"):
            pending = self._client.list_objects(self._bucket, prefix=f"{self._prefix}pending/")
            for marker in list(pending):
                if marker.last_modified is None or marker.last_modified > limit:
                    continue
                digest = str(marker.object_name).rsplit("/", 1)[1]
                if not self._has(f"{self._object(digest)}/manifest.json"):
                    for key in self._list(f"{self._object(digest)}/"):
                        self._client.remove_object(self._bucket, key)
                self._client.remove_object(self._bucket, str(marker.object_name))

    # --- plain objects, which are no artifacts ------------------------------------------------

    def keys(self, prefix: str) -> list[str]:
        return [item.key for item in self.objects(prefix)]

    def objects(self, prefix: str) -> list[S3Object]:
        """Those whose key starts so; keys are those below the store's own prefix."""
        found = self._objects(f"{self._prefix}{prefix}")
        return [replace(item, key=item.key.removeprefix(self._prefix)) for item in found]

    def upload(self, path: Path, key: str) -> None:
        with self._plain_errors(f"writing {key}"):
            self._client.fput_object(self._bucket, f"{self._prefix}{key}", str(path))

    def download(self, key: str, path: Path) -> None:
        with self._plain_errors(f"reading {key}"):
            self._client.fget_object(self._bucket, f"{self._prefix}{key}", str(path))

    def remove(self, key: str) -> None:
        with self._plain_errors(f"removing {key}"):
            self._client.remove_object(self._bucket, f"{self._prefix}{key}")

    # --- inside -----------------------------------------------------------------------------

    def _object(self, digest: str) -> str:
        return f"{self._prefix}objects/{check_digest(digest)}"

    def _is_sound(self, digest: str) -> bool:
        """Whether the artifact is there with every file in its size; bytes are read by `fetch`."""
        if not self.exists(digest):
            return False
        try:
            self.verify(digest)
        except StoreUnavailableError:
            raise
        except StoreError:
            return False
        return True

    def _has(self, key: str) -> bool:
        from minio.error import S3Error

        with self._plain_errors("looking for an artifact"):
            try:
                self._client.stat_object(self._bucket, key)
            except S3Error as error:
                if error.code in ("NoSuchKey", "NoSuchObject"):
                    return False
                raise
        return True

    def _list(self, prefix: str) -> list[str]:
        return [item.key for item in self._objects(prefix)]

    def _objects(self, prefix: str) -> list[S3Object]:
        with self._plain_errors("listing"):
            found = self._client.list_objects(self._bucket, prefix=prefix, recursive=True)
            return [
                S3Object(str(o.object_name), o.size or 0, o.last_modified or datetime.now(UTC))
                for o in found
            ]

    def _read(self, key: str) -> bytes | None:
        from minio.error import S3Error

        try:
            response = self._client.get_object(self._bucket, key)
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                return None
            raise
        try:
            return bytes(response.read())
        finally:
            response.close()
            response.release_conn()

    def _stream(self, key: str, relative: str) -> Any:
        response = self._client.get_object(self._bucket, key)
        try:
            return copy_stream(response, None, relative)
        finally:
            response.close()
            response.release_conn()

    def _write(self, key: str, content: bytes) -> None:
        self._client.put_object(self._bucket, key, io.BytesIO(content), len(content))

    def _download(self, digest: str, path: str, target: Path) -> None:
        from minio.error import S3Error

        try:
            self._client.fget_object(
                self._bucket, f"{self._object(digest)}/files/{path}", str(target)
            )
        except S3Error as error:
            if error.code not in ("NoSuchKey", "NoSuchObject"):
                raise
            with self._way_out(digest):
                raise StoreError(f"artifact {digest}: file {path} is missing") from error

    @contextmanager
    def _download_directory(self) -> Iterator[Path]:
        with self._cache._plain_errors("making room"), self._cache._scratch() as scratch:
            yield scratch

    @contextmanager
    def _way_out(self, digest: str) -> Iterator[None]:
        try:
            yield
        except StoreUnavailableError:
            raise
        except StoreError as error:
            raise StoreError(
                f"{error}; delete {self.uri(digest)}/ and resume the run, "
                "which makes the artifact again"
            ) from error

    @contextmanager
    def _plain_errors(self, doing: str) -> Iterator[None]:
        from minio.error import InvalidResponseError, S3Error, ServerError
        from urllib3.exceptions import HTTPError

        where = f"store {self.url}: {doing}"
        try:
            yield
        except S3Error as error:
            if error.code in ("SlowDown", "ServiceUnavailable", "InternalError"):
                raise StoreUnavailableError(f"{where}: {error.code}; try again later") from error
            advice = ADVICE.get(error.code or "", "the server's message: " + str(error.message))
            raise StoreError(f"{where}: {error.code}; {advice}") from error
        except (HTTPError, ServerError, InvalidResponseError) as error:
            raise StoreUnavailableError(
                f"{where}: the endpoint does not answer as it should ({_reason(error)}); "
                "check that it runs and that CARAVAN_S3_ENDPOINT is right"
            ) from error


def _reason(error: BaseException) -> str:
    """The last cause that the client gives, without the request it was about."""
    reason = getattr(error, "reason", None) or error
    text = str(reason).rpartition(": ")[2].strip("()")
    return text or type(reason).__name__


def _compare(digest: str, expected: Manifest, found: Manifest) -> None:
    by_path = {f.path: f for f in found.files}
    for entry in expected.files:
        if by_path.get(entry.path) != entry:
            raise StoreError(f"artifact {digest}: file {entry.path} is corrupted")


def _client(url: str, settings: Settings) -> Minio:
    minio = require("minio", extra="s3", feature="a store on S3")
    import certifi
    import urllib3

    endpoint = urlsplit(settings.s3_endpoint)
    if endpoint.scheme not in ("http", "https") or not endpoint.netloc or endpoint.path.strip("/"):
        raise StoreError(
            f"store {url}: CARAVAN_S3_ENDPOINT={settings.s3_endpoint!r} is not an endpoint; "
            "write http://host:port or https://host"
        )
    if not settings.s3_access_key or not settings.s3_secret_key.get_secret_value():
        raise StoreError(
            f"store {url}: set CARAVAN_S3_ACCESS_KEY and CARAVAN_S3_SECRET_KEY to its credentials"
        )
    client: Minio = minio.Minio(
        endpoint.netloc,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        region=settings.s3_region or "us-east-1",
        secure=endpoint.scheme == "https",
        http_client=urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=READ_TIMEOUT_SECONDS),
            retries=urllib3.Retry(
                total=RETRIES, backoff_factor=0.3, status_forcelist=[500, 502, 503, 504]
            ),
            ca_certs=os.environ.get("SSL_CERT_FILE") or certifi.where(),
        ),
    )
    return client

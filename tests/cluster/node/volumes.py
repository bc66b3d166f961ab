"""Volumes of the test node: one directory of the machine for each claim of class `standard`.

    volumes.py KUBECONFIG DIRECTORY

A directory may be written by everybody: `fsGroup` has no effect on the machine's directories.
It goes with its claim.
"""

from __future__ import annotations

import logging
import shutil
import sys
import time
from pathlib import Path

from kubernetes import client, config
from urllib3.exceptions import HTTPError

CLASS = "standard"
OURS = "caravan-"


def make_class(storage: client.StorageV1Api) -> None:
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    storage.create_storage_class(
        client.V1StorageClass(
            metadata=client.V1ObjectMeta(name=CLASS, annotations=default),
            provisioner="caravan.test/directory",
        )
    )


def provide(core: client.CoreV1Api, root: Path) -> None:
    """Make a volume for every claim that waits for one."""
    existing = {v.metadata.name for v in core.list_persistent_volume().items}
    for claim in core.list_persistent_volume_claim_for_all_namespaces().items:
        meta, spec = claim.metadata, claim.spec
        name = OURS + meta.uid
        waits = claim.status.phase == "Pending" and not spec.volume_name
        if not waits or spec.storage_class_name != CLASS or name in existing:
            continue
        directory = root / meta.uid
        directory.mkdir(exist_ok=True)
        directory.chmod(0o777)
        core.create_persistent_volume(
            client.V1PersistentVolume(
                metadata=client.V1ObjectMeta(name=name),
                spec=client.V1PersistentVolumeSpec(
                    capacity={"storage": spec.resources.requests["storage"]},
                    access_modes=spec.access_modes,
                    storage_class_name=CLASS,
                    persistent_volume_reclaim_policy="Retain",
                    host_path=client.V1HostPathVolumeSource(path=str(directory)),
                    claim_ref=client.V1ObjectReference(
                        kind="PersistentVolumeClaim",
                        name=meta.name,
                        namespace=meta.namespace,
                        uid=meta.uid,
                    ),
                ),
            )
        )


def reclaim(core: client.CoreV1Api) -> None:
    """Remove the volumes whose claim is gone."""
    for volume in core.list_persistent_volume().items:
        if volume.metadata.name.startswith(OURS) and volume.status.phase == "Released":
            shutil.rmtree(volume.spec.host_path.path, ignore_errors=True)
            core.delete_persistent_volume(volume.metadata.name)


def main(kubeconfig: str, root: str) -> None:
    config.load_kube_config(kubeconfig)
    core = client.CoreV1Api()
    make_class(client.StorageV1Api())
    while True:
        try:
            provide(core, Path(root))
            reclaim(core)
        except (client.ApiException, HTTPError) as error:
            logging.warning("%s", error)
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])

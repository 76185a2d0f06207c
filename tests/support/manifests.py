"""The manifests of deploy/kubernetes as kubectl applies them. An overlay is merged as kustomize does, lists aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"

Manifest = dict[str, Any]


def documents(file: Path) -> list[Manifest]:
    """All of a file."""
    return [each for each in yaml.safe_load_all(file.read_text()) if each is not None]


def base() -> list[Manifest]:
    """What `kubectl apply -k deploy/kubernetes` applies."""
    (kustomization,) = documents(FOLDER / "kustomization.yaml")
    return [each for name in kustomization["resources"] for each in documents(FOLDER / name)]


def trial() -> list[Manifest]:
    """What `kubectl apply -k deploy/kubernetes/trial` applies."""
    (kustomization,) = documents(FOLDER / "trial" / "kustomization.yaml")
    assert kustomization["resources"] == [".."]
    result = base()
    for patch in (each for name in kustomization["patches"] for each in documents(FOLDER / "trial" / name["path"])):
        target = one(result, patch["kind"], patch["metadata"]["name"])
        result[result.index(target)] = _merged(target, patch)
    return result


def one(manifests: list[Manifest], kind: str, name: str = "keypeer") -> Manifest:
    """The only one of that kind and name."""
    (found,) = (each for each in manifests if each["kind"] == kind and each["metadata"]["name"] == name)
    return found


def pod_spec(manifest: Manifest) -> Manifest:
    """Of a StatefulSet, or of a pod itself."""
    spec: Manifest = manifest["spec"]["template"]["spec"] if manifest["kind"] == "StatefulSet" else manifest["spec"]
    return spec


def containers(manifest: Manifest) -> list[Manifest]:
    """Those that prepare, and those that work."""
    spec = pod_spec(manifest)
    return [*spec.get("initContainers", ()), *spec["containers"]]


def _merged(target: Manifest, patch: Manifest) -> Manifest:
    result = dict(target)
    for key, value in patch.items():
        assert not isinstance(value, list), "lists merge by keys that only kustomize knows"
        result[key] = _merged(result.get(key, {}), value) if isinstance(value, dict) else value
    return result

"""The manifests: Kubernetes' own schemas take them, they agree with the service and among themselves, and a node starts
as they describe it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from hsm_adapter.errors import Unusable
from hsm_adapter.pin import read_pin
from kms import limits
from kms.settings import Home, read_home
from kms.web.routing import Route
from kms.web.server import ROUTES
from tests.support.manifests import FOLDER, Manifest, base, containers, documents, one, pod_spec, trial
from tests.support.pods import Pod
from tests.support.service import Service

INIT = documents(FOLDER / "initialise.yaml")[0]
VERSIONS = ("1.30", "1.37")  # Kubernetes; the oldest that is supported for long anywhere, and the newest schemas
LAYERS: dict[str, Callable[[], list[Manifest]]] = {"base": base, "trial": trial}
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")


def statefulset() -> Manifest:
    return one(base(), "StatefulSet")


def container() -> Manifest:
    (only,) = pod_spec(statefulset())["containers"]
    return dict(only)


def home_of(layer: str, folder: Path) -> Home:
    """The settings of that layer, read as the service reads them."""
    for name, text in one(LAYERS[layer](), "ConfigMap", "keypeer-settings")["data"].items():
        (folder / name).write_text(text)
    return read_home(folder)


def said_by_readme(pattern: str) -> set[str]:
    return set(re.findall(pattern, (FOLDER / "README.md").read_text()))


# ── schemas ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("layer", "version"), [("base", VERSIONS[0]), ("base", VERSIONS[1]), ("trial", VERSIONS[1])])
def test_kubernetes_own_schemas_take_them(layer: str, version: str) -> None:
    manifests = [*LAYERS[layer](), INIT]
    assert {each["kind"] for each in manifests} >= {"Namespace", "ConfigMap", "StatefulSet", "Service", "NetworkPolicy"}
    for manifest in manifests:
        assert kubernetes_validate.validate(manifest, version, strict=True).startswith(version)


def test_the_schemas_would_refuse_a_slip() -> None:
    wrong = statefulset()
    pod_spec(wrong)["containers"][0]["readinessProb"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSIONS[-1], strict=True)


def test_every_file_is_applied_or_named_in_the_readme() -> None:
    (kustomization,) = documents(FOLDER / "kustomization.yaml")
    applied = {*kustomization["resources"], "kustomization.yaml"}
    assert {path.name for path in FOLDER.glob("*.yaml")} - applied == said_by_readme(
        r"-f deploy/kubernetes/(\S+\.yaml)"
    )


def test_everything_is_in_the_namespace() -> None:
    name = one(base(), "Namespace")["metadata"]["name"]
    assert {each["metadata"]["namespace"] for each in [*base(), INIT] if each["kind"] != "Namespace"} == {name}


# ── settings, ports, probes ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("layer", "single"), [("base", False), ("trial", True)])
def test_the_settings_load(layer: str, single: bool, tmp_path: Path) -> None:
    home = home_of(layer, tmp_path)
    address = home.postgres()
    assert address is not None
    assert home.settings.store.single is single
    assert len(address.hosts) == (1 if single else 3)
    assert len(home.hsm_sockets()) == home.settings.hsm.workers


def test_a_certificate_names_every_node_of_the_settings(tmp_path: Path) -> None:
    names = home_of("base", tmp_path).settings.service.names
    replicas, service = statefulset()["spec"]["replicas"], statefulset()["spec"]["serviceName"]
    assert replicas >= 2
    assert {f"keypeer-{index}.{service}.keypeer.svc" for index in range(replicas)} <= set(names)
    assert one(trial(), "StatefulSet")["spec"]["replicas"] == 1


@pytest.mark.parametrize("layer", LAYERS)
def test_one_port_all_the_way(layer: str, tmp_path: Path) -> None:
    address, port = home_of(layer, tmp_path).address
    assert address == "0.0.0.0"  # noqa: S104 - a pod's address isn't known before
    assert {each["name"]: each["containerPort"] for each in container()["ports"]} == {"https": port}
    balanced, nodes = (one(base(), "Service", name)["spec"] for name in ("keypeer", "keypeer-nodes"))
    assert [(each["port"], each["targetPort"]) for each in balanced["ports"]] == [(443, "https")]
    assert [(each["port"], each["targetPort"]) for each in nodes["ports"]] == [(port, "https")]
    assert nodes["clusterIP"] == "None"


@pytest.mark.parametrize("name", PROBES)
def test_probes_ask_routes_that_need_no_certificate(name: str) -> None:
    probe = container()[name]
    open_to_all = {route.path: route for route in ROUTES if route.method == "GET" and route.roles is None}
    assert isinstance(open_to_all[probe["httpGet"]["path"]], Route)
    assert (probe["httpGet"]["port"], probe["httpGet"]["scheme"]) == ("https", "HTTPS")
    assert probe["timeoutSeconds"] >= limits.HEALTH_CHECK_S + 1


def test_only_readiness_hangs_on_store_and_hsm() -> None:
    assert {name: container()[name]["httpGet"]["path"] for name in PROBES} == {
        "startupProbe": "/healthz",
        "readinessProbe": "/readyz",
        "livenessProbe": "/healthz",
    }


def test_the_end_has_the_time_that_it_may_take() -> None:
    pause = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    stages = 3 * (limits.SHUTDOWN_GRACE_S + limits.WATCHDOG_INTERVAL_S)  # kms/supervisor.py, _end
    assert pod_spec(statefulset())["terminationGracePeriodSeconds"] > pause + stages


# ── who may do what ────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("manifest", [statefulset(), INIT], ids=["nodes", "init"])
def test_no_rights_that_it_does_not_need(manifest: Manifest) -> None:
    spec = pod_spec(manifest)
    pod = spec["securityContext"]
    assert (pod["runAsNonRoot"], pod["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
    assert pod["runAsUser"] == pod["runAsGroup"] == pod["fsGroup"] > 10_000
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for each in containers(manifest):
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in each["resources"]["limits"]


@pytest.mark.parametrize(
    "manifest", [*base(), *trial(), INIT], ids=lambda each: f"{each['kind']}-{each['metadata']['name']}"
)
def test_no_secret_is_in_the_files(manifest: Manifest) -> None:
    assert manifest["kind"] != "Secret"
    text = yaml.safe_dump(manifest)
    assert "PRIVATE KEY" not in text
    assert "BEGIN CERTIFICATE" not in text
    # Nor would one be in an environment, which children inherit and `kubectl describe` shows.
    assert "secretKeyRef" not in text
    assert not re.search(r"[0-9a-f]{16}", text.lower()), "a digest, or a PIN"


def secrets_of(manifest: Manifest) -> dict[str, str]:
    volumes = pod_spec(manifest)["volumes"]
    return {each["name"]: each["secret"]["secretName"] for each in volumes if "secret" in each}


def test_each_secret_is_a_file_of_the_init_container_alone() -> None:
    named = secrets_of(statefulset())
    assert set(named.values()) == {"keypeer-tls", "keypeer-pin", "keypeer-postgres"}
    assert set(named.values()) == said_by_readme(r"create secret generic (\S+)")
    (preparing,) = pod_spec(statefulset())["initContainers"]
    assert set(named) <= {each["name"] for each in preparing["volumeMounts"] if each.get("readOnly")}
    assert not set(named) & {each["name"] for each in container()["volumeMounts"]}


def test_the_home_is_in_memory_and_each_nodes_own() -> None:
    volumes = {each["name"]: each for each in pod_spec(statefulset())["volumes"]}
    assert volumes["home"]["emptyDir"]["medium"] == "Memory"
    (token,) = statefulset()["spec"]["volumeClaimTemplates"]
    assert (token["metadata"]["name"], token["spec"]["accessModes"]) == ("token", ["ReadWriteOnce"])
    mounts = {each["name"] for part in containers(statefulset()) for each in part["volumeMounts"]}
    assert mounts == {*volumes, "token"}


def test_init_sees_what_the_first_node_sees() -> None:
    nodes, init = pod_spec(statefulset()), pod_spec(INIT)
    assert init["initContainers"] == nodes["initContainers"]
    assert init["securityContext"] == nodes["securityContext"]
    assert init["containers"][0]["image"] == container()["image"]
    assert init["containers"][0]["env"] == container()["env"]
    assert init["containers"][0]["volumeMounts"] == container()["volumeMounts"]
    volumes = {each["name"]: each for each in init["volumes"]}
    assert volumes.pop("token")["persistentVolumeClaim"]["claimName"] == "token-keypeer-0"
    assert volumes["tls"]["secret"].pop("optional") is True  # they are what it makes
    assert volumes == {each["name"]: each for each in nodes["volumes"]}


def selected(labels: dict[str, str]) -> Callable[[Manifest], bool]:
    return lambda pod: labels.items() <= pod["metadata"]["labels"].items()


def test_services_and_disruptions_mean_the_nodes_and_not_init() -> None:
    template = statefulset()["spec"]["template"]
    selectors = [one(base(), "Service", name)["spec"]["selector"] for name in ("keypeer", "keypeer-nodes")]
    kinds = ("StatefulSet", "PodDisruptionBudget")
    selectors += [one(base(), kind)["spec"]["selector"]["matchLabels"] for kind in kinds]
    spreads = pod_spec(statefulset())["topologySpreadConstraints"]
    selectors += [spread["labelSelector"]["matchLabels"] for spread in spreads]
    assert len(selectors) == 6
    assert all(selected(labels)(template) and not selected(labels)(INIT) for labels in selectors)
    assert one(base(), "PodDisruptionBudget")["spec"]["maxUnavailable"] < statefulset()["spec"]["replicas"]


def ports_of(rules: list[dict[str, Any]]) -> list[set[Any]]:
    return [{each["port"] for each in rule["ports"]} for rule in rules]


def test_the_network_is_closed_but_for_what_is_named(tmp_path: Path) -> None:
    policy, nothing = (one(base(), "NetworkPolicy", name)["spec"] for name in ("keypeer", "nothing"))
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert selected(policy["podSelector"]["matchLabels"])(statefulset()["spec"]["template"])
    assert selected(policy["podSelector"]["matchLabels"])(INIT)
    assert ports_of(policy["ingress"]) == [{"https"}]
    address = home_of("base", tmp_path).postgres()
    assert address is not None
    store = {port for _, port in address.hosts}
    assert ports_of(policy["egress"])[:2] == [{53}, store]
    namespaces = {host.split(".")[1] for host, _ in address.hosts}
    assert {
        policy["egress"][1]["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    } == namespaces
    assert all(rule["to"] and rule["ports"] for rule in policy["egress"])


# ── a node's start ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_node_has_its_home_to_itself(pod: Pod, node: Service) -> None:
    files = [
        pod.home / "keypeer.toml",
        *(path for part in ("tls", "pin", "postgres") for path in (pod.home / part).iterdir()),
    ]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}
    assert read_pin(f"file:{pod.home}/pin/pin").reveal() == pod.pin
    with pytest.raises(Unusable, match="open to group"):
        read_pin(f"file:{pod.mounted}/pin/pin")  # why there are copies
    assert node.folder == pod.home


@pytest.mark.parametrize("name", PROBES)
def test_a_node_that_started_as_the_trial_says_answers_its_probes(name: str, node: Service) -> None:
    assert node.caller("anyone").get(container()[name]["httpGet"]["path"]).status == 200


def test_metrics_are_for_staff(node: Service) -> None:
    assert node.caller("anyone").get("/metrics").status == 401
    assert node.caller("auditor").raw("GET", "/metrics").status == 200

"""Checks of deploy/injection: the policy and the component that give pods the sidecar."""

import copy
import hashlib

import kubernetes_validate
import yaml

import chart
import podsecurity
from source import ROOT

POLICY = ROOT / "deploy/injection/policy.yaml"
COMPONENT = ROOT / "deploy/injection/component"
HERE = ROOT / "tests/deploy/injection"
# From this minor on, admissionregistration.k8s.io/v1 has it; before, v1beta1 has the same fields.
STABLE = 36


def check_injection_policy(problems):
    """The policy and its binding are what the API servers take, each minor in the version it serves."""
    documents = list(yaml.safe_load_all(POLICY.read_text()))
    for document in documents:
        for minor in chart.MINORS:
            served = copy.deepcopy(document)
            if int(minor.split(".")[1]) < STABLE:
                served["apiVersion"] = "admissionregistration.k8s.io/v1beta1"
            try:
                kubernetes_validate.validate(served, minor, strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                problems.append(f"{POLICY.name}: {document['kind']} of {minor}: {error.message}")
    broken = copy.deepcopy(documents[0])
    broken["spec"]["failurePolicies"] = "Fail"
    if not list(chart.validated(broken)):
        problems.append("the policy's schema takes a misspelt field")
    return len(documents) * len(chart.MINORS) + 1


def check_injection_recorded(problems):
    """What the policy makes of the sample pods, as recorded by scripts/policy-oracle, is what a pod needs."""
    policy = POLICY.read_bytes()
    pods = sorted((HERE / "pods").glob("*.yaml"))
    for pod in pods:
        recorded = (HERE / "mutated" / pod.name).read_text()
        digest = hashlib.sha256(policy + pod.read_bytes()).hexdigest()
        if digest not in recorded:
            problems.append(f"{pod.name}: the policy or the sample changed: see scripts/policy-oracle/README.md")
            continue
        before, after = yaml.safe_load(pod.read_text()), yaml.safe_load(recorded)
        asked = before["metadata"]["annotations"]["vault.hashicorp.com/agent-inject"] == "true"
        if f"# matched: {int(asked)}\n" not in recorded:
            problems.append(f"{pod.name}: matches {'not once' if asked else 'unasked'}")
        if not asked:
            for container in after["spec"]["containers"]:
                # Go writes what is empty.
                container.pop("resources")
            if before["spec"] != after["spec"]:
                problems.append(f"{pod.name}: changed unasked")
            continue
        problems += [f"{pod.name}: {what}" for what in chart.validated(without_status(after))]
        problems += [f"{pod.name}: {what}" for what in podsecurity.restricted(after["spec"])]
        problems += [f"{pod.name}: {what}" for what in wanting(before, after)]
    return len(pods)


def without_status(pod):
    pod = copy.deepcopy(pod)
    pod.pop("status", None)
    pod["metadata"].pop("creationTimestamp", None)
    return pod


def wanting(before, after):
    """What an injected pod lacks."""
    annotations, spec = before["metadata"]["annotations"], after["spec"]
    get = lambda name, default=None: annotations.get(f"vault.hashicorp.com/{name}", default)
    named = {value for name, value in annotations.items() if "secret-volume-path" in name}
    folders = named if get("secret-volume-path") else named | {"/vault/secrets"}
    sidecar = spec["initContainers"][0]
    if sidecar["name"] != "leasehold":
        yield "the sidecar is not first"
    once = get("agent-pre-populate-only") == "true"
    if once == (sidecar.get("restartPolicy") == "Always") or once == ("startupProbe" in sidecar):
        yield "the sidecar is of the wrong kind"
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: mount for mount in sidecar["volumeMounts"]}
    for folder in folders:
        if volumes[mounts[folder]["name"]].get("emptyDir", {}).get("medium") != "Memory":
            yield f"{folder} is not in memory"
    for path, kind in {"/etc/leasehold": "downwardAPI", "/var/run/secrets/vault": "projected", "/run/leasehold": "emptyDir"}.items():
        if kind not in volumes[mounts[path]["name"]]:
            yield f"{path} is no {kind}"
    for name, path in {"tls-secret": "/vault/tls", "agent-extra-secret": "/vault/custom"}.items():
        if get(name) and volumes[mounts[path]["name"]]["secret"]["secretName"] != get(name):
            yield f"{name} is not mounted"
    chosen = {name.strip() for name in get("agent-inject-containers", "").split(",")} - {""}
    for container in spec["containers"] + spec["initContainers"][1:]:
        seen = {mount["mountPath"] for mount in container.get("volumeMounts", [])}
        if (not chosen or container["name"] in chosen) != folders.issubset(seen):
            yield f"container {container['name']} has the folders {sorted(seen & folders)}"
        if "/run/leasehold" in seen:
            yield f"container {container['name']} sees the state"
    old = {c["name"]: c for c in before["spec"]["containers"]}
    for container in spec["containers"]:
        kept = {mount["mountPath"] for mount in old[container["name"]].get("volumeMounts", [])}
        if not kept <= {mount["mountPath"] for mount in container.get("volumeMounts", [])}:
            yield f"container {container['name']} lost a mount"
    limits = sidecar["resources"]["limits"]
    if limits["memory"] != get("agent-limits-mem", "32Mi") or limits.get("cpu") != get("agent-limits-cpu"):
        yield f"the limits are {limits}"
    if sidecar["securityContext"]["runAsUser"] != int(get("agent-run-as-user", 65532)):
        yield "the user is another"
    if bool(spec.get("shareProcessNamespace")) != (get("agent-share-process-namespace") == "true"):
        yield "the process namespace is shared unasked, or not"


KEYS = {"containers": "name", "initContainers": "name", "volumes": "name", "env": "name", "volumeMounts": "mountPath"}


def merge(base, patch, name=""):
    """A strategic merge as Kubernetes' schema has it for these fields; what is new comes first, as with kustomize."""
    if isinstance(base, dict) and isinstance(patch, dict):
        merged = dict(base)
        for key, value in patch.items():
            merged[key] = merge(base[key], value, key) if key in base else value
        return merged
    if isinstance(base, list) and isinstance(patch, list) and name in KEYS:
        key = KEYS[name]
        known = {item[key]: item for item in base}
        new = [item for item in patch if item[key] not in known]
        changed = {item[key]: merge(known[item[key]], item) for item in patch if item[key] in known}
        return new + [changed.get(item[key], item) for item in base]
    return patch


def check_injection_component(problems):
    """The component gives a workload the sidecar; the result is valid and meets *restricted*."""
    component = yaml.safe_load((COMPONENT / "kustomization.yaml").read_text())
    if (component["kind"], component["apiVersion"]) != ("Component", "kustomize.config.k8s.io/v1alpha1"):
        problems.append("kustomization.yaml is no component")
    patches = [yaml.safe_load((COMPONENT / patch["path"]).read_text()) for patch in component["patches"]]
    pod = yaml.safe_load((HERE / "pods/plain.yaml").read_text())
    pod["spec"]["containers"][0]["volumeMounts"] = [{"name": "leasehold-vault-secrets", "mountPath": "/vault/secrets"}]
    labels = {"app": "web"}
    workload = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"leasehold-injection": "enabled"}},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": pod["metadata"]["annotations"]},
                "spec": pod["spec"],
            },
        },
    }
    for patch in patches:
        workload = merge(workload, {"spec": patch["spec"]})
    after = {"metadata": workload["spec"]["template"]["metadata"], "spec": workload["spec"]["template"]["spec"]}
    problems += [f"component: {what}" for what in chart.validated(workload)]
    problems += [f"component: {what}" for what in podsecurity.restricted(after["spec"])]
    problems += [f"component: {what}" for what in wanting(pod, after)]
    return len(patches)

"""Checks of the chart: what it renders, what it refuses, and that the claims of docs/security.md hold in it."""

import subprocess
import tempfile
from pathlib import Path

import helm_python
import jsonschema
import kubernetes_validate
import yaml

import source
from source import ROOT

CHART = ROOT / "deploy/charts/leasehold"
HERE = ROOT / "tests/deploy"
NAMESPACE = "leasehold-system"
# The least that renders; every example is laid over it.
LEAST = {"vault": {"address": "https://vault.vault.svc:8200"}}
MINORS = sorted(set(kubernetes_validate.utils.all_versions()), key=lambda it: [int(part) for part in it.split(".")])[-3:]
RBAC = {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
OURS = {"providers", "pods", "state", "host-ca"}
# Each switch -> the one rule that it adds.
RIGHTS = {
    "podEvents": {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create"]},
    "tokenRequest": {"apiGroups": [""], "resources": ["serviceaccounts/token"], "verbs": ["create"]},
    "readPods": {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
}

TEXT = {"type": "object", "additionalProperties": {"type": "string"}}
ENDPOINT = {
    "type": "object",
    "required": ["port", "path"],
    "additionalProperties": False,
    "properties": {
        "port": {"const": "health"},
        "path": {"const": "/metrics"},
        "interval": {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"},
        "relabelings": {"type": "array"},
    },
}


def custom(spec):
    return {
        "type": "object",
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": False,
        "properties": {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}, "spec": spec},
    }


def monitor(endpoints):
    selector = {"type": "object", "required": ["matchLabels"], "properties": {"matchLabels": TEXT}}
    return custom({
        "type": "object",
        "required": ["selector", endpoints],
        "additionalProperties": False,
        "properties": {"selector": selector, endpoints: {"type": "array", "minItems": 1, "items": ENDPOINT}},
    })


# What kubernetes-validate has no schema of: the parts of each CRD that we use, as its project publishes them.
CUSTOM = {
    "PodMonitor": monitor("podMetricsEndpoints"),
    "ServiceMonitor": monitor("endpoints"),
    # Its groups are judged by promtool.
    "PrometheusRule": custom({"type": "object", "required": ["groups"], "additionalProperties": False,
                              "properties": {"groups": {"type": "array", "minItems": 1}}}),
    "SecretProviderClass": custom({
        "type": "object",
        "required": ["provider", "parameters"],
        "additionalProperties": False,
        "properties": {
            "provider": {"enum": ["leasehold", "vault", "openbao"]},
            "parameters": {**TEXT, "required": ["objects"]},
            # Would make a Kubernetes Secret; nothing of ours does.
            "secretObjects": False,
        },
    }),
}


def merged(base, over):
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: merged(base.get(key), value) for key, value in over.items()}


def render(values):
    """The documents of the chart under `values`, in the order of their files."""
    with helm_python.Chart.load(str(CHART)) as chart:
        files = chart.render(values, name="leasehold", namespace=NAMESPACE)
    texts = [text for name, text in sorted(files.items()) if not name.endswith("NOTES.txt")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def values_files():
    for file in sorted((HERE / "values").glob("*.yaml")):
        yield file.name, merged(LEAST, yaml.safe_load(file.read_text()) or {})


def validated(document):
    """Yields what the API servers of the three newest minors, or the CRD, would refuse."""
    kind = document["kind"]
    if kind in CUSTOM:
        for error in jsonschema.Draft202012Validator(CUSTOM[kind]).iter_errors(document):
            yield f"{kind}: {error.json_path}: {error.message}"
        return
    for minor in MINORS:
        try:
            kubernetes_validate.validate(document, minor, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{kind} of {minor}: {'.'.join(map(str, error.path))}: {error.message}"
        except kubernetes_validate.SchemaNotFoundError as error:
            yield error.message


def of_kind(documents, kind):
    return [document for document in documents if document["kind"] == kind]


def check_values(problems):
    """Every values file renders to documents that the API servers take, and that keep what we claim."""
    seen = 0
    for name, values in values_files():
        documents = render(values)
        for document in documents:
            seen += 1
            problems += [f"values/{name}: {what}" for what in validated(document)]
            if document["metadata"].get("namespace") != NAMESPACE and not document["kind"].startswith("Cluster"):
                problems.append(f"values/{name}: {document['kind']} is in no namespace")
        problems += [f"values/{name}: {what}" for what in claims(documents, values)]
    return seen


def switched(values, switch):
    return values.get(switch, {}).get("enabled", False)


def rights(documents, values):
    """The rights in the cluster are those of the switches that are on, for our ServiceAccount alone."""
    expected = [rule for switch, rule in RIGHTS.items() if switched(values, switch)]
    found = [document for document in documents if document["kind"] in RBAC]
    kinds = sorted(document["kind"] for document in found)
    if kinds != (["ClusterRole", "ClusterRoleBinding"] if expected else []):
        yield f"has RBAC: {kinds}"
        return
    if not expected:
        return
    role, binding = of_kind(found, "ClusterRole")[0], of_kind(found, "ClusterRoleBinding")[0]
    account = of_kind(documents, "ServiceAccount")[0]["metadata"]
    if role.get("rules") != expected:
        yield f"the rules are {role.get('rules')}, expected {expected}"
    if binding["roleRef"]["kind"] != "ClusterRole" or binding["roleRef"]["name"] != role["metadata"]["name"]:
        yield "the binding is to another role"
    if binding["subjects"] != [{"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}]:
        yield f"the rights are given to {binding['subjects']}"


def check_rights(problems):
    """Each switch adds exactly its verb, alone and with the others; without any there is no RBAC at all."""
    seen = 0
    for number in range(2 ** len(RIGHTS)):
        on = {switch: {"enabled": bool(number >> bit & 1)} for bit, switch in enumerate(RIGHTS)}
        values = merged(LEAST, on | {"fileOwnership": {"enabled": True}})
        documents = render(values)
        seen += 1
        problems += [f"{on}: {what}" for what in claims(documents, values)]
        problems += [f"{on}: {what}" for document in documents for what in validated(document)]
        arguments = of_kind(documents, "DaemonSet")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
        flags = {"podEvents": "--pod-events", "tokenRequest": "--token-request", "readPods": "--read-pods"}
        for switch, flag in flags.items():
            if (flag in arguments) != on[switch]["enabled"]:
                problems.append(f"{on}: {flag} is {'there' if flag in arguments else 'missing'}")
    return seen


def claims(documents, values):
    """The claims of docs/security.md, whatever the values."""
    yield from rights(documents, values)
    account, daemon_set = of_kind(documents, "ServiceAccount")[0], of_kind(documents, "DaemonSet")[0]
    spec = daemon_set["spec"]["template"]["spec"]
    uses_api = any(switched(values, switch) for switch in RIGHTS)
    if account.get("automountServiceAccountToken") is not False or spec.get("automountServiceAccountToken") is not uses_api:
        yield "a ServiceAccount token is mounted, or is not though an option needs it"
    if any(spec.get(field) for field in ("hostPID", "hostIPC")):
        yield "a namespace of the host is shared"
    if spec.get("hostNetwork") and not values.get("hostNetwork"):
        yield "the host's network is shared unasked"
    if daemon_set["spec"]["updateStrategy"].get("rollingUpdate", {}).get("maxSurge", 0) != 0:
        yield "maxSurge is not 0"
    container, *others = spec["containers"]
    if others or spec.get("initContainers"):
        yield "there is more than one container"
    context = container["securityContext"]
    expected = {
        "runAsUser": 0, "privileged": False, "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
    }
    for field, value in expected.items():
        if context.get(field) is not value and context.get(field) != value:
            yield f"securityContext.{field} is {context.get(field)!r}"
    owns = values.get("fileOwnership", {}).get("enabled", False)
    capabilities = {"drop": ["ALL"], **({"add": ["CHOWN"]} if owns else {})}
    if context["capabilities"] != capabilities:
        yield f"capabilities are {context['capabilities']}"
    if context["seccompProfile"]["type"] not in ("RuntimeDefault", "Localhost"):
        yield "no seccomp profile"
    if spec["securityContext"].get("seLinuxOptions", {}).get("type") == "spc_t" and not values.get("seLinux"):
        yield "spc_t unasked"
    if "cpu" in container["resources"].get("limits", {}) and "resources" not in values:
        yield "there is a CPU limit by default"
    yield from mount_claims(spec, container, values)
    yield from wiring(documents, daemon_set, container)


def mount_claims(spec, container, values):
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    mine = {volume["name"] for volume in values.get("volumes", [])}
    for name, mount in mounts.items():
        propagation = mount.get("mountPropagation")
        if propagation != ("HostToContainer" if name == "pods" else None) and name not in mine:
            yield f"mount {name} has propagation {propagation}"
    for volume in spec["volumes"]:
        if volume["name"] in mine:
            continue
        if "hostPath" in volume and volume["name"] not in OURS:
            yield f"hostPath {volume['name']}"
        if "projected" in volume:
            yield f"projected volume {volume['name']}"
    if {volume["name"] for volume in spec["volumes"]} != set(mounts):
        yield "volumes and mounts are not the same"
    pods = next(volume for volume in spec["volumes"] if volume["name"] == "pods")["hostPath"]["path"]
    arguments = dict(argument.split("=", 1) for argument in container["args"] if "=" in argument)
    if mounts["pods"]["mountPath"] != pods or arguments["--kubelet-root"] + "/pods" != pods:
        yield "the pods folder is not at the host's own path"
    if mounts["state"]["mountPath"] != arguments["--state-dir"]:
        yield "the state folder is not mounted"
    endpoints = [argument.split("=")[1] for argument in container["args"] if argument.startswith("--endpoint=")]
    if not endpoints or any(str(Path(path).parent) != mounts["providers"]["mountPath"] for path in endpoints):
        yield f"sockets {endpoints} are not in the providers folder"


def wiring(documents, daemon_set, container):
    """Names on one side are those on the other."""
    labels = daemon_set["spec"]["template"]["metadata"]["labels"]
    ports = {port["name"] for port in container["ports"]}
    for kind in ("PodMonitor", "NetworkPolicy", "Service"):
        for document in of_kind(documents, kind):
            selector = document["spec"].get("podSelector") or document["spec"]["selector"]
            selector = selector.get("matchLabels", selector)
            if not selector.items() <= labels.items():
                yield f"{kind} does not select the pods"
    for probe in ("livenessProbe", "readinessProbe"):
        get = container[probe]["httpGet"]
        if f'"{get["path"]}"' not in source.read("src/admin.rs") or get["port"] not in ports:
            yield f"{probe} asks for {get}"
    for argument in container["args"][1:]:
        flag = argument.split("=")[0].lstrip("-")
        if flag not in source.flags():
            yield f"the binary has no flag --{flag}"
    if container["args"][0] != "provider":
        yield f"the binary has no command {container['args'][0]}"


def check_claims_judge(problems):
    """The claims themselves are not taken from documents that break them."""
    role = {"kind": "ClusterRole", "apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"namespace": NAMESPACE}}

    def pod(documents):
        return of_kind(documents, "DaemonSet")[0]["spec"]["template"]["spec"]

    def container(documents):
        return pod(documents)["containers"][0]

    breakages = {
        "RBAC": lambda it: it.append(role),
        "token": lambda it: pod(it).pop("automountServiceAccountToken"),
        "token of the account": lambda it: of_kind(it, "ServiceAccount")[0].update(automountServiceAccountToken=True),
        "projected": lambda it: pod(it)["volumes"][0].update(projected={"sources": []}),
        "host pid": lambda it: pod(it).update(hostPID=True),
        "host network": lambda it: pod(it).update(hostNetwork=True),
        "surge": lambda it: of_kind(it, "DaemonSet")[0]["spec"]["updateStrategy"]["rollingUpdate"].update(maxSurge=1),
        "sidecar": lambda it: pod(it)["containers"].append({"name": "x"}),
        "privileged": lambda it: container(it)["securityContext"].update(privileged=True),
        "escalation": lambda it: container(it)["securityContext"].pop("allowPrivilegeEscalation"),
        "writable": lambda it: container(it)["securityContext"].update(readOnlyRootFilesystem=False),
        "uid": lambda it: container(it)["securityContext"].update(runAsUser=1),
        "chown": lambda it: container(it)["securityContext"]["capabilities"].update(add=["CHOWN"]),
        "capabilities": lambda it: container(it)["securityContext"]["capabilities"].pop("drop"),
        "seccomp": lambda it: container(it)["securityContext"]["seccompProfile"].update(type="Unconfined"),
        "cpu": lambda it: container(it)["resources"]["limits"].update(cpu=1),
        "private": lambda it: container(it)["volumeMounts"][1].pop("mountPropagation"),
        "bidirectional": lambda it: container(it)["volumeMounts"][1].update(mountPropagation="Bidirectional"),
        "hostPath": lambda it: pod(it)["volumes"].append({"name": "root", "hostPath": {"path": "/"}}),
        "moved pods": lambda it: container(it)["volumeMounts"][1].update(mountPath="/pods"),
        "probe": lambda it: container(it)["livenessProbe"]["httpGet"].update(path="/healthz"),
        "flag": lambda it: container(it)["args"].append("--agent"),
        "command": lambda it: container(it)["args"].__setitem__(0, "agent"),
        "socket elsewhere": lambda it: container(it)["args"].append("--endpoint=/tmp/vault.sock"),
    }
    over = {
        "another verb": lambda role: role["rules"][0].update(verbs=["create", "patch"]),
        "another resource": lambda role: role["rules"].append(RIGHTS["tokenRequest"]),
        "every verb": lambda role: role["rules"][0].update(verbs=["*"]),
    }
    switched_on = merged(LEAST, {"podEvents": {"enabled": True}})
    for name, breakage in over.items():
        broken = render(switched_on)
        breakage(of_kind(broken, "ClusterRole")[0])
        if not list(claims(broken, switched_on)):
            problems.append(f"the claims are taken from a chart with: {name}")
    problems += [f"the default install: {what}" for what in claims(render(LEAST), LEAST)]
    for name, breakage in breakages.items():
        broken = render(LEAST)
        breakage(broken)
        if not list(claims(broken, LEAST)):
            problems.append(f"the claims are taken from a chart with: {name}")
    return len(breakages)


def check_refused(problems):
    """Every entry of refused/*.yaml is refused for its reason, and the values without it are not."""
    render(LEAST)
    seen = 0
    for file in sorted((HERE / "refused").glob("*.yaml")):
        for case in yaml.safe_load_all(file.read_text()):
            seen += 1
            label = f"refused/{file.name}: {case['values']}"
            by = helm_python.HelmRenderError if case.get("by") == "template" else helm_python.HelmValuesError
            try:
                render(merged(LEAST, case["values"]))
                problems.append(f"{label}: was rendered")
            except by as error:
                if case["says"] not in str(error):
                    problems.append(f"{label}: refused, but for another reason: {error}")
    return seen


def leaves(values, path=()):
    """(path, value) of everything that is not a mapping with something in it."""
    if isinstance(values, dict) and values:
        for key, value in values.items():
            yield from leaves(value, (*path, key))
    else:
        yield path, values


def check_every_switch(problems):
    """Some values file turns each switch of values.yaml, and each name in the schema has a default there."""
    defaults = yaml.safe_load((CHART / "values.yaml").read_text())
    turned = set()
    for _, values in values_files():
        for path, default in leaves(defaults):
            found = values
            for key in path:
                found = found.get(key, {}) if isinstance(found, dict) else {}
            if found not in ({}, default):
                turned.add(path)
    paths = [path for path, _ in leaves(defaults)]
    # There is one value for these: the API's, and the one that the binary is built for.
    fixed = {"successThreshold", "kubernetes.io/os"}
    unturned = [path for path in paths if path not in turned and path[-1] not in fixed]
    problems += [f"no values file turns {'.'.join(path)}" for path in unturned]
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    if set(schema["properties"]) != set(defaults):
        problems.append(f"schema and values.yaml differ: {set(schema['properties']) ^ set(defaults)}")
    return len(paths)


def check_policy_fields(problems):
    """The schema of policy.rules has the fields that the binary reads, and examples of values use each."""
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    fields = set(schema["properties"]["policy"]["properties"]["rules"]["items"]["properties"])
    if fields != source.policy_fields():
        problems.append(f"policy.rules has other fields than the binary: {fields ^ source.policy_fields()}")
    used = {
        field
        for _, values in values_files()
        for rule in values.get("policy", {}).get("rules", [])
        for field in rule
    }
    if used != fields:
        problems.append(f"no values file has the policy fields {fields - used}")
    return len(fields)


def check_default_is_small(problems):
    """The default install is a DaemonSet and a ServiceAccount; nothing of it is a right."""
    kinds = sorted(document["kind"] for document in render(LEAST))
    if kinds != ["DaemonSet", "ServiceAccount"]:
        problems.append(f"the default install has {kinds}")
    return len(kinds)


def check_with_binary(problems, binary):
    """The binary itself takes the flags and the policy that the chart renders."""
    seen = 0
    for name, values in values_files():
        documents = render(values)
        container = of_kind(documents, "DaemonSet")[0]["spec"]["template"]["spec"]["containers"][0]
        arguments = container["args"] + ["--print-config"]
        with tempfile.TemporaryDirectory() as folder:
            policies = [it["data"]["policy.yaml"] for it in of_kind(documents, "ConfigMap") if "policy.yaml" in it["data"]]
            if policies:
                file = Path(folder) / "policy.yaml"
                file.write_text(policies[0])
                arguments = [f"--policy={file}" if it.startswith("--policy=") else it for it in arguments]
            elif values.get("policy", {}).get("existingConfigMap"):
                arguments = [it for it in arguments if not it.startswith("--policy=")]
            ran = subprocess.run([binary, *arguments], env={}, capture_output=True, text=True, check=False)
        seen += 1
        if ran.returncode != 0:
            problems.append(f"values/{name}: the binary says: {ran.stderr.strip()}")
    return seen


def manifests():
    """File in deploy/manifests -> its text."""
    folder = ROOT / "deploy/manifests"
    for file in sorted((folder / "values").glob("*.yaml")):
        values = yaml.safe_load(file.read_text())
        documents = render(values)
        head = f"# Rendered from deploy/charts/leasehold with deploy/manifests/values/{file.name} by\n"
        head += "# scripts/check-deploy --write; do not edit.\n"
        yield folder / file.name, head + yaml.safe_dump_all(documents, sort_keys=False, width=110)


def check_manifests(problems, write):
    """deploy/manifests is what the chart renders."""
    seen = 0
    for file, text in manifests():
        seen += 1
        if write:
            file.write_text(text)
        elif not file.exists() or file.read_text() != text:
            problems.append(f"{file.relative_to(ROOT)} is not what the chart renders: scripts/check-deploy --write")
    for file in sorted((ROOT / "deploy/manifests").glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            seen += 1
            if document["kind"] != "Kustomization":
                problems += [f"{file.relative_to(ROOT)}: {what}" for what in validated(document)]
    return seen


def check_image(problems):
    """The image is one static file and nothing else."""
    lines = [line.strip() for line in source.read("Dockerfile").splitlines()]
    stages = [index for index, line in enumerate(lines) if line.startswith("FROM ")]
    last = [line for line in lines[stages[-1]:] if line and not line.startswith("#")]
    if last[0] != "FROM scratch" or [line.split()[0] for line in last[1:]].count("COPY") != 1:
        problems.append("the last stage of Dockerfile is not one file on scratch")
    if any(line.startswith(("RUN", "ADD")) for line in last):
        problems.append("the last stage of Dockerfile runs or adds something")
    text = source.read("Dockerfile") + source.read("scripts/image")
    for needed in ("ARG BUILDER", "RUN scripts/image binary", "PROFILE:-dist", "+crt-static", "--locked", "--remap-path-prefix"):
        if needed not in text:
            problems.append(f"Dockerfile and scripts/image have no {needed}")
    if "[profile.dist]" not in source.read("Cargo.toml"):
        problems.append("Cargo.toml has no profile dist")
    return len(last)

"""Checks of docs/ and examples/: links, commands, flags, manifests, messages and test names are real."""

import copy
import re
import subprocess
import tempfile
from pathlib import Path

import helm_python
import jsonschema
import yaml

import alerts
import chart
import podsecurity
import source
from source import ROOT


def pages():
    return sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "examples").glob("*/README.md"))


def fences(text):
    """(language, content) of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.S | re.M)


def check_links(problems):
    """Every relative link leads to a file, and to a heading in it."""
    seen = 0
    for page in pages():
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            seen += 1
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            if not file.exists():
                problems.append(f"{page.name}: no file {target}")
            elif anchor and file.suffix == ".md" and anchor not in alerts.headings(file):
                problems.append(f"{page.name}: no heading {target}")
    return seen


def check_commands(problems):
    """Every flag and subcommand of leasehold that a page shows exists."""
    seen = 0
    for page in pages():
        text = page.read_text()
        for command in re.findall(r"`leasehold ([a-z]+)|^    leasehold ([a-z]+)", text, re.M):
            seen += 1
            if (name := command[0] or command[1]) not in source.commands():
                problems.append(f"{page.name}: the binary has no command {name}")
        for flag in re.findall(r"`--([a-z][a-z-]*)", text):
            seen += 1
            if flag not in source.every_flag():
                problems.append(f"{page.name}: the binary has no flag --{flag}")
        for metric in re.findall(r"\bleasehold_[a-z_]+", text):
            seen += 1
            if metric not in source.metrics():
                problems.append(f"{page.name}: there is no metric {metric}")
    return seen


def check_blocks(problems):
    """YAML in pages is valid: chart values by the schema, Kubernetes objects by theirs."""
    seen = 0
    for page in pages():
        for language, content in fences(page.read_text()):
            if language != "yaml":
                continue
            seen += 1
            label = f"{page.name}: {content.splitlines()[0]}"
            try:
                if content.startswith("# values"):
                    chart.render(chart.merged(chart.LEAST, yaml.safe_load(content)))
                    continue
                for document in yaml.safe_load_all(content):
                    if isinstance(document, dict) and "kind" in document:
                        problems += [f"{label}: {what}" for what in judged(document)]
            except (yaml.YAMLError, helm_python.HelmError) as error:
                problems.append(f"{label}: {error}")
    return seen


def judged(document):
    """What is wrong with a Kubernetes object."""
    yield from chart.validated(document)
    if document["kind"] == "SecretProviderClass":
        yield from judged_class(document)


def judged_class(document):
    """What the binary would ignore or refuse in a SecretProviderClass, as far as names go."""
    parameters = document["spec"]["parameters"]
    for name in set(parameters) - source.parameters():
        yield f"no parameter {name}"
    for entry in yaml.safe_load(parameters["objects"]):
        for field in set(entry) - source.object_fields():
            yield f"objects have no field {field}"
        for field in {"objectName", "secretPath"} - set(entry):
            yield f"an object has no {field}"


def check_reference(problems):
    """The reference names every parameter, every field of an object and every field of a policy."""
    wanted = {
        "secretproviderclass.md": {f"vault{suffix}" for suffix in source.constant_list("src/spec/parameters.rs", "SUFFIXES")}
        | (source.constant_list("src/spec/parameters.rs", "PLAIN") - {"secretProviderClass"})
        | source.object_fields(),
        "policy.md": source.policy_fields(),
    }
    for page, names in wanted.items():
        text = (ROOT / "docs" / page).read_text()
        problems += [f"{page}: does not tell of {name}" for name in sorted(names) if f"`{name}`" not in text]
    return sum(map(len, wanted.values()))


def check_messages(problems):
    """Every message of the troubleshooting page is one of the program's; … stands for what it fills in."""
    seen = 0
    for language, content in fences((ROOT / "docs/troubleshooting.md").read_text()):
        if language != "text":
            continue
        for line in content.splitlines():
            # A message is put together from parts: what was asked: what came back; what to do.
            for part in re.split(r"…|; |: ", line):
                if not (part := part.strip(" :;,")):
                    continue
                seen += 1
                if part not in source.messages():
                    problems.append(f"troubleshooting.md: the program never says {part!r}")
    return seen


def check_threats(problems):
    """Every row of the threat table names tests that exist, or says that it has none."""
    rows = re.findall(r"^\| (\d+) \|(.*)\|$", (ROOT / "docs/security.md").read_text(), re.M)
    if [int(number) for number, _ in rows] != list(range(1, 38)):
        problems.append("security.md: the threat table has not the rows 1 to 37")
    for number, row in rows:
        proof = row.split("|")[-1]
        names = re.findall(r"`(\w+)`", proof)
        if not names and not re.search(r"\b(no test|not built)\b", proof):
            problems.append(f"security.md: row {number} neither names a test nor says that there is none")
        for name in names:
            if name not in source.tests() | deploy_checks() | source.targets():
                problems.append(f"security.md: row {number}: there is no test {name}")
    return len(rows)


def deploy_checks():
    """Checks of this folder count as tests."""
    text = "".join(file.read_text() for file in (ROOT / "tests/deploy").glob("*.py"))
    return set(re.findall(r"^def (check_\w+)", text, re.M))


def bookstore():
    for file in sorted((ROOT / "examples/bookstore").glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            yield file.name, document


def check_bookstore(problems):
    """The example is valid, makes no Secret, and its pods meet the published *restricted* standard."""
    seen, pods = 0, []
    for file, document in bookstore():
        seen += 1
        problems += [f"bookstore/{file}: {what}" for what in judged(document)]
        if document["kind"] == "Secret":
            problems.append(f"bookstore/{file}: has a Secret")
        if document["kind"] == "Deployment":
            pods.append(document["spec"]["template"]["spec"])
        if document["kind"] == "Namespace":
            enforced = document["metadata"]["labels"].get("pod-security.kubernetes.io/enforce")
            if enforced != "restricted":
                problems.append(f"bookstore/{file}: the namespace enforces {enforced}")
    for spec in pods:
        problems += [f"bookstore: {what}" for what in podsecurity.restricted(spec)]
    if not pods:
        problems.append("bookstore: has no Deployment")
    return seen


def check_sidecar(problems):
    """The sidecar example and the manifests of the page about it are valid and meet *restricted*; each field of the
    agent's file is in its reference."""
    documents = [it for file in sorted((ROOT / "examples/sidecar").glob("*.yaml")) for it in yaml.safe_load_all(file.read_text())]
    page = (ROOT / "docs/agent.md").read_text()
    shown = [it for language, text in fences(page) if language == "yaml" for it in yaml.safe_load_all(text)]
    documents += [it for it in shown if isinstance(it, dict) and "kind" in it]
    pods = 0
    for document in documents:
        problems += [f"sidecar: {what}" for what in judged(document)]
        spec = document.get("spec", {}) if document["kind"] == "Pod" else document.get("spec", {}).get("template", {}).get("spec")
        if spec:
            pods += 1
            problems += [f"sidecar: {what}" for what in podsecurity.restricted(spec)]
    constants = {
        "src/spec/agent.rs": ("PARAMETERS", "OWN", "FOLDER"), "src/spec/agent/auth.rs": ("AUTH",), "src/spec/agent/exec.rs": ("EXEC",),
    }
    names = {name for path, lists in constants.items() for constant in lists for name in source.constant_list(path, constant)}
    problems += [f"agent.md: does not tell of {name}" for name in sorted(names) if name not in page]
    if pods < 3:
        problems.append("sidecar: has not three pods")
    return len(documents) + len(names)


def check_classes_with_binary(problems, binary):
    """The binary takes every SecretProviderClass shown, without a warning, and the chart the policy it suggests."""
    texts = [content for page in pages() for language, content in fences(page.read_text()) if language == "yaml"]
    texts += [(ROOT / "examples/bookstore/secretproviderclass.yaml").read_text()]
    texts = [text for text in texts if "kind: SecretProviderClass" in text]
    with tempfile.TemporaryDirectory() as folder:
        for number, text in enumerate(texts):
            (Path(folder) / f"{number}.yaml").write_text(text)
        ran = subprocess.run([binary, "check", folder], env={}, capture_output=True, text=True, check=False)
        if ran.returncode != 0 or " 0 warning(s)" not in ran.stdout:
            problems.append(f"leasehold check: {ran.stdout}{ran.stderr}")
        suggest = [binary, "check", "--suggest-policy", folder]
        suggested = subprocess.run(suggest, env={}, capture_output=True, text=True, check=True)
    rules = yaml.safe_load(suggested.stdout)["rules"]
    try:
        chart.render(chart.merged(chart.LEAST, {"policy": {"enabled": True, "rules": rules}}))
    except helm_python.HelmError as error:
        problems.append(f"the chart refuses the policy that leasehold check suggests: {error}")
    return len(texts) + len(rules)


def check_restricted(problems):
    """The checks of *restricted* refuse each breakage of it, and our own DaemonSet, which must be privileged."""
    good = next(it["spec"]["template"]["spec"] for _, it in bookstore() if it["kind"] == "Deployment")
    for name, breakage in podsecurity.BREAKAGES.items():
        broken = copy.deepcopy(good)
        breakage(broken)
        if not list(podsecurity.restricted(broken)):
            problems.append(f"podsecurity.py does not see: {name}")
    daemon_set = chart.of_kind(chart.render(chart.LEAST), "DaemonSet")[0]
    if not any("hostPath" in what for what in podsecurity.restricted(daemon_set["spec"]["template"]["spec"])):
        problems.append("podsecurity.py takes our own hostPaths")
    return len(podsecurity.BREAKAGES) + 1


def check_crd(problems):
    """The schema that stands for the SecretProviderClass CRD refuses what the CRD refuses."""
    good = next(it for _, it in bookstore() if it["kind"] == "SecretProviderClass")
    breakages = [
        lambda it: it["spec"].pop("provider"),
        lambda it: it["spec"].update(provider="aws"),
        lambda it: it["spec"].update(secretObjects=[]),
        lambda it: it["spec"]["parameters"].update(objects=[]),
        lambda it: it["spec"].update(objects="[]"),
        lambda it: it["spec"]["parameters"].update(vaultAdress="x"),
        lambda it: it["spec"]["parameters"].update(objects="- {objectName: a}"),
    ]
    validator = jsonschema.Draft202012Validator(chart.CUSTOM["SecretProviderClass"])
    for number, breakage in enumerate(breakages):
        broken = copy.deepcopy(good)
        breakage(broken)
        if validator.is_valid(broken) and not list(judged_class(broken)):
            problems.append(f"breakage {number} of a SecretProviderClass is not seen")
    return len(breakages)

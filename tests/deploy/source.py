"""What the Rust sources say, read as text: flags, metrics, messages, tests. The chart and the documents are
held to it, so that neither names what the binary does not have."""

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def read(path):
    return (ROOT / path).read_text()


@cache
def rust(*folders):
    return "\n".join(
        file.read_text() for folder in folders for file in sorted((ROOT / folder).rglob("*.rs"))
    )


def found(what, items):
    """Fails loudly where a pattern no longer finds anything: the source was rewritten, so must the pattern."""
    if not items:
        raise SystemExit(f"tests/deploy/source.py no longer finds {what} in src/: adapt its pattern")
    return items


@cache
def arguments():
    """Each struct of arguments -> its long flags, those of the structs flattened into it too."""
    text = read("src/cli.rs")
    server = found("server flags", set(re.findall(r'id = concat!\(\$flag, "(-[a-z-]+)"\)', text)))
    known = {
        struct: {prefix + name for name in server} for struct, prefix in (("VaultFlags", "vault"), ("OpenbaoFlags", "openbao"))
    }
    bodies = dict(re.findall(r"pub struct (\w+Args) \{(.*?)\n\}", text, re.S))

    def of(struct):
        if struct not in known:
            fields = re.findall(r"^    pub (\w+): (\w+)", bodies[struct], re.M)
            nested = [of(kind) for _, kind in fields if kind in bodies or kind in known]
            own = {name.replace("_", "-") for name, kind in fields if kind not in bodies and kind not in known}
            known[struct] = own.union(*nested)
        return known[struct]

    for struct in found("arguments", bodies):
        of(struct)
    return known


def flags():
    """Long flags of `leasehold provider`."""
    return arguments()["ProviderArgs"]


def every_flag():
    """Long flags of every command."""
    return set().union(*arguments().values())


@cache
def commands():
    """Subcommands."""
    body = re.search(r"pub enum Command \{(.*?)\n\}", read("src/cli.rs"), re.S)
    return {name.lower() for name in re.findall(r"^    (\w+)[(,]", found("Command", body)[1], re.M)}


@cache
def metrics():
    """Name of each series as scraped -> its label names."""
    text = read("src/metrics.rs")
    fields = dict(re.findall(r"^    (\w+): (.*),$", re.search(r"pub struct Metrics \{(.*?)\n\}", text, re.S)[1], re.M))
    label_sets = {
        name: set(re.findall(r"(\w+): Label", body))
        for name, body in re.findall(r"struct (\w+Labels) \{(.*?)\}", text, re.S)
    }
    series = {}
    registered = re.findall(
        r'registry\.register(?:_with_unit)?\(\s*"(\w+)",\s*"[^"]*",(\s*Unit::Seconds,)?\s*(?:(\w+)\.clone\(\)|(Info)::new)',
        text,
    )
    for name, unit, field, info in found("metrics", registered):
        base = f"leasehold_{name}" + ("_seconds" if unit else "")
        if info:
            series[f"{base}_info"] = {"version"}
            continue
        kind = fields[field]
        labels = next((labels for label_set, labels in label_sets.items() if f"<{label_set}" in kind), set())
        if "Histogram" in kind:
            series[f"{base}_bucket"] = labels | {"le"}
            series[f"{base}_sum"] = series[f"{base}_count"] = labels
        elif "Counter" in kind:
            series[f"{base}_total"] = labels
        else:
            series[base] = labels
    # The constructor registers every field that is a metric: one that the pattern missed would be one less.
    if len(registered) != len(re.findall(r"registry\.register", text)):
        raise SystemExit("tests/deploy/source.py misses metrics that src/metrics.rs registers: adapt its pattern")
    return series


@cache
def label_values():
    """Every literal that could be a label's value."""
    return set(re.findall(r'"([a-z][a-z-]*|[a-z]+)"', rust("src")))


@cache
def tests():
    """Names of functions in the sources and tests: tests, and modules that are one subject."""
    return set(re.findall(r"\bfn (\w+)", rust("src", "tests"))) | {
        file.stem for file in (ROOT / "tests").rglob("*.rs")
    }


@cache
def targets():
    """Targets of the Makefile, for what is shown by a command rather than by a test."""
    return found("targets", set(re.findall(r"^(\w+):", read("Makefile"), re.M)))


@cache
def messages():
    """All of src as one text in which a message that spans lines is one line."""
    text = re.sub(r"\\\n\s*", "", rust("src"))
    return text.replace('\\"', '"').replace("{{", "{").replace("}}", "}")


def constant_list(path, name):
    """The strings of a `const NAME: [&str; n]`."""
    body = re.search(rf"const {name}: \[[^\]]*\] =\s*\[(.*?)\];", read(path), re.S)
    return set(re.findall(r'"([^"]+)"', found(f"{name} in {path}", body)[1]))


def policy_fields():
    return constant_list("src/policy/file.rs", "FIELDS")


def object_fields():
    return constant_list("src/spec/object/reader.rs", "KNOWN")


def parameters():
    """Parameters of a SecretProviderClass, in all spellings."""
    suffixes = constant_list("src/spec/parameters.rs", "SUFFIXES")
    plain = constant_list("src/spec/parameters.rs", "PLAIN") - {"secretProviderClass"}
    prefixed = {prefix + suffix for prefix in ("vault", "bao", "openbao") for suffix in suffixes}
    return plain | prefixed | {"vaultRoleName", "baoRoleName", "openbaoRoleName"}

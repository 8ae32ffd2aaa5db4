"""Checks of alerts and dashboard: promtool, and that every series, label and value is one the binary has."""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import yaml

import chart
import source
from source import ROOT

# Labels that Prometheus and our relabelling add.
TARGET_LABELS = {"job", "instance", "namespace", "pod", "node", "container"}


def judged(expression):
    """Yields what an expression names that the binary does not have."""
    series = source.metrics()
    names = set(re.findall(r"\bleasehold_\w+", expression))
    if not names:
        yield "names no metric of ours"
    labels = set(TARGET_LABELS)
    for name in names:
        if name not in series:
            yield f"there is no metric {name}"
        labels |= series.get(name, set())
    grouped = re.findall(r"\b(?:by|without) \(([^)]*)\)", expression)
    used = {label.strip() for group in grouped for label in group.split(",")}
    matchers = re.findall(r'(\w+)\s*(?:=~|!=|!~|=)\s*"([^"]*)"', expression)
    for label in (used | {label for label, _ in matchers}) - labels:
        yield f"no metric here has the label {label}"
    for label, values in matchers:
        if label in TARGET_LABELS:
            continue
        for value in values.split("|"):
            if value not in source.label_values():
                yield f"nothing has {label}={value}"


def check_judge(problems):
    """The judge itself refuses what it must."""
    wrong = [
        "leasehold_mounts", "rate(leasehold_mount_total[5m])", 'leasehold_mounts_total{result="fine"}',
        'leasehold_mounts_total{outcome="ok"}', "sum by (pod_name) (leasehold_volumes)", "up",
        'leasehold_requests_total{class=~"sealed|lost"}', "leasehold_swaps_bucket",
    ]
    problems += [f"is not refused: {expression}" for expression in wrong if not list(judged(expression))]
    right = 'sum by (node, le) (rate(leasehold_mount_duration_seconds_bucket{provider="vault"}[5m]))'
    problems += [f"{right}: {what}" for what in judged(right)]
    return len(wrong) + 1


def rules():
    """The rules as the chart renders them."""
    documents = chart.render(chart.merged(chart.LEAST, {"prometheusRule": {"enabled": True}}))
    return chart.of_kind(documents, "PrometheusRule")[0]["spec"]


def check_rules(problems):
    """Every alert names what there is, and its runbook."""
    seen, troubleshooting = 0, headings(ROOT / "docs/troubleshooting.md")
    for rule in (rule for group in rules()["groups"] for rule in group["rules"]):
        seen += 1
        problems += [f"alert {rule['alert']}: {what}" for what in judged(rule["expr"])]
        page, anchor = rule["annotations"]["runbook_url"].split("#")
        if page != "docs/troubleshooting.md" or anchor not in troubleshooting:
            problems.append(f"alert {rule['alert']}: no runbook at {page}#{anchor}")
        if not {"summary", "description"} <= set(rule["annotations"]):
            problems.append(f"alert {rule['alert']}: says nothing")
    return seen


def check_promtool(problems, promtool):
    """promtool takes the rules, and each fires on what it is for and stays silent on what it is not."""
    with tempfile.TemporaryDirectory() as folder:
        whole, file = Path(folder) / "whole.yaml", Path(folder) / "rules.yaml"
        whole.write_text(yaml.safe_dump(rules()))
        bare = rules()
        for rule in (rule for group in bare["groups"] for rule in group["rules"]):
            del rule["annotations"]
        file.write_text(yaml.safe_dump(bare))
        tests = yaml.safe_load((ROOT / "tests/deploy/rules_test.yaml").read_text())
        tests["rule_files"] = [str(file)]
        cases = Path(folder) / "test.yaml"
        cases.write_text(yaml.safe_dump(tests))
        for arguments in (["check", "rules", str(whole)], ["test", "rules", str(cases)]):
            ran = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
            if ran.returncode != 0:
                problems.append(f"promtool {' '.join(arguments[:2])}: {ran.stdout}{ran.stderr}")
    alerts = {rule["alert"] for group in rules()["groups"] for rule in group["rules"]}
    fired = {
        case["alertname"] for test in tests["tests"] for case in test["alert_rule_test"] if case["exp_alerts"]
    }
    if alerts != fired:
        problems.append(f"rules_test.yaml does not show how these fire: {sorted(alerts - fired)}")
    return len(fired)


def check_dashboard(problems):
    """Every panel shows what there is, and every metric has one."""
    dashboard = json.loads((chart.CHART / "files/dashboard.json").read_text())
    seen = 0
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            seen += 1
            problems += [f"panel {panel['title']!r}: {what}" for what in judged(target["expr"])]
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                if label not in target["expr"]:
                    problems.append(f"panel {panel['title']!r}: the legend's {label} is not in the query")
    shown = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    named = set(re.findall(r"\bleasehold_\w+", shown))
    for name in source.metrics():
        seen += 1
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        if not named & {name, f"{base}_bucket"}:
            problems.append(f"no panel shows {name}")
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            seen += 1
            problems += [f"variable {variable['name']}: {what}" for what in judged(variable["definition"])]
    return seen


def headings(file):
    """Anchors of a Markdown file, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", file.read_text(), flags=re.S | re.M)
    titles = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}

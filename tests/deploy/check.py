"""Everything about an installation that can be checked without a cluster. Run by scripts/check-deploy."""

import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(__file__))

import alerts
import chart
import documents
import injection
from source import ROOT


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--promtool", required=True)
    parser.add_argument("--binary", help="leasehold itself, to be shown the rendered flags and policies")
    parser.add_argument("--write", action="store_true", help="render deploy/manifests")
    options = parser.parse_args()
    built = ROOT / "target/debug/leasehold"
    binary = options.binary or (str(built) if built.exists() else None)

    checks = [
        chart.check_default_is_small,
        chart.check_values,
        chart.check_rights,
        chart.check_claims_judge,
        chart.check_refused,
        chart.check_every_switch,
        chart.check_policy_fields,
        lambda problems: chart.check_manifests(problems, options.write),
        chart.check_image,
        alerts.check_judge,
        alerts.check_rules,
        lambda problems: alerts.check_promtool(problems, options.promtool),
        alerts.check_dashboard,
        documents.check_links,
        documents.check_commands,
        documents.check_blocks,
        documents.check_reference,
        documents.check_messages,
        documents.check_threats,
        documents.check_restricted,
        documents.check_crd,
        documents.check_bookstore,
        injection.check_injection_policy,
        injection.check_injection_component,
        injection.check_injection_recorded,
        documents.check_sidecar,
    ]
    if binary:
        checks.append(lambda problems: chart.check_with_binary(problems, binary))
        checks.append(lambda problems: documents.check_classes_with_binary(problems, binary))
    else:
        print("no leasehold is built (cargo build): it is not asked about rendered flags and shown classes")

    started, seen, problems = time.monotonic(), 0, []
    for check in checks:
        looked_at = check(problems)
        # A check that found nothing to look at has lost its subject.
        if not looked_at:
            problems.append(f"{check.__name__} looked at nothing")
        seen += looked_at or 0
    for problem in problems:
        print(problem)
    took = time.monotonic() - started
    minors = ", ".join(minor.rsplit(".", 1)[0] for minor in chart.MINORS)
    print(f"{len(problems)} problems in {seen} things looked at, Kubernetes {minors}, {took:.1f} s")
    return 1 if problems else 0


sys.exit(main())

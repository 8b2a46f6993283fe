#!/usr/bin/env python3
"""Checks the alerts, their runbooks and the dashboard: .ci/deploy/prometheus.py MAKEGATE

Runs the tests of the rules; every alert has one, and a runbook; every metric and label that is named is one that a running makegate has; every
command in the runbooks is one that makegate knows.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import tools
from tools import check

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "deploy/prometheus/makegate.rules.yaml"
TESTS = ROOT / "deploy/prometheus/makegate.rules.test.yaml"
RUNBOOKS = ROOT / "docs/runbooks.md"
DASHBOARD = ROOT / "deploy/grafana/makegate.json"

SCRAPED = {"job", "instance"}
# Metrics that a demo has no samples of, and their labels.
WITHOUT_SAMPLES = {
    "makegate_key_expires_timestamp_seconds": {"caller", "key"},
    "makegate_certificate_expires_timestamp_seconds": {"door"},
    "makegate_issuer_keys": {"issuer"},
    "makegate_issuer_fetch_failures_total": {"issuer"},
    "makegate_tls_handshake_failures_total": {"door", "reason"},
    "makegate_share_refusals_total": {"caller", "kind"},
    "makegate_replicas_members": {"state"},
    "makegate_replicas_unlike": {"what"},
    "makegate_replicas_engine_seconds": {"line"},
    "makegate_replicas_fence_waits_total": {"by"},
    "makegate_replicas_swaps_total": {"result"},
}


def main(makegate):
    why_not = tools.python_with_packages()
    if why_not:
        print(f"SKIPPED: the alerts and the dashboard, because the tools cannot be installed: {why_not}", file=sys.stderr)
        return
    import yaml

    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    tests = yaml.safe_load(TESTS.read_text())["tests"]
    alerts = {rule["alert"]: rule for rule in rules if "alert" in rule}
    promtool("check", "rules", RULES.name)
    promtool("test", "rules", TESTS.name)
    for name, alert in alerts.items():
        is_tested(name, alert, tests)
    have_runbooks(alerts)
    with tempfile.TemporaryDirectory() as temporary, tools.demo(makegate, temporary) as told:
        known = exposed(told)
        recorded = {rule["record"] for rule in rules if "record" in rule}
        for rule in rules:
            are_exposed(rule.get("alert") or rule["record"], rule["expr"], known, recorded)
        dashboard(known, recorded)
        commands(makegate, told, Path(temporary))
    print(f"{len(alerts)} alerts: each is tested, and has a runbook")


def promtool(*arguments):
    if not shutil.which("promtool"):
        print(f"SKIPPED: promtool {' '.join(arguments)}, because promtool is missing", file=sys.stderr)
        return
    told = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, cwd=RULES.parent)
    check(told.returncode == 0, f"promtool {arguments}: {told.stdout}{told.stderr}")


def is_tested(name, alert, tests):
    """A test sees it not firing, then firing alone, then not any more; and its texts name only labels that it has then."""
    for test in tests:
        moments = [(moment["eval_time"], moment["exp_samples"]) for moment in test["promql_expr_test"] if moment["expr"].startswith("ALERTS")]
        firing = [at for at, (_, samples) in enumerate(moments) if f'alertname="{name}"' in str(samples)]
        if firing and not moments[0][1] and not moments[-1][1]:
            break
    else:
        tools.fail(f"{name}: no test in which it does not fire, fires, and fires no longer")
    (sample,) = moments[firing[0]][1]
    severity = alert["labels"]["severity"]
    check(severity in ("page", "ticket") and f'severity="{severity}"' in sample["labels"], f"{name}: {severity}")
    labels = set(re.findall(r"(\w+)=", sample["labels"]))
    told = set(re.findall(r"\$labels\.(\w+)", str(alert["annotations"])))
    check(told <= labels, f"{name}: its texts name {told - labels}, and it has {labels}")
    check(set(alert["annotations"]) == {"summary", "description", "runbook_url"}, f"{name}: {list(alert['annotations'])}")


def have_runbooks(alerts):
    sections = re.split(r"^## ", RUNBOOKS.read_text(), flags=re.MULTILINE)[1:]
    titles = [section.splitlines()[0] for section in sections]
    check(titles == list(alerts), f"the runbooks are {titles}, and the alerts {list(alerts)}")
    for title, section in zip(titles, sections):
        check(alerts[title]["annotations"]["runbook_url"] == f"docs/runbooks.md#{title.lower()}", f"{title}: its runbook_url")
        for part in ("What it means.", "See it.", "Now.", "After.", "It is over"):
            check(f"\n**{part}**" in section, f"the runbook of {title} lacks '{part}'")
    for anchor in re.findall(r"\]\(#([^)]*)\)", RUNBOOKS.read_text()):
        check(anchor in map(str.lower, titles), f"{RUNBOOKS.name}: no section #{anchor}")


def exposed(told):
    """The metrics of a running makegate, each with its labels and their values."""
    import log

    log.requests(told)
    documented = set(re.findall(r"^\| `(\w+)` ", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    for _ in range(300):  # The disk is measured, and the first head signed, a moment after the start.
        text = urllib.request.urlopen(told["operator"] + "/metrics", timeout=30).read().decode()
        types = dict(re.findall(r"^# TYPE (\S+) (\w+)$", text, re.MULTILINE))
        if documented <= set(types):
            break
        time.sleep(0.1)
    check(documented == set(types), f"docs/metrics.md and /metrics differ in {documented ^ set(types)}")
    known = {}
    for family, kind in types.items():
        for name in [f"{family}_bucket", f"{family}_sum", f"{family}_count"] if kind == "histogram" else [family]:
            known[name] = {label: set() for label in WITHOUT_SAMPLES.get(family, ())}
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        check(name not in WITHOUT_SAMPLES, f"{name} has samples after all: WITHOUT_SAMPLES need not name it")
        for label, value in re.findall(r'(\w+)="([^"]*)"', labels):
            known[name].setdefault(label, set()).add(value)
    return known


# Labels that have the same values in every makegate.
CLOSED = {"answer": "makegate_request_duration_seconds_count", "state": "makegate_upstream_breaker"}


def are_exposed(where, expr, known, recorded):
    """Every metric in a query is there, with the labels that the query asks for."""
    texts = r'"(?:[^"\\]|\\.)*"'
    for name, matchers in re.findall(rf"([a-zA-Z_][\w:]*)\s*\{{((?:{texts}|[^}}\"])*)\}}", expr):
        if name in recorded:
            continue
        check(name in known, f"{where}: makegate has no metric {name}")
        for label, value in re.findall(rf"(\w+)\s*(?:=~|!~|!=|=)\s*({texts})", matchers):
            check(label in {*known[name], *SCRAPED}, f"{where}: {name} has no label {label}")
            words = known[CLOSED[label]][label] if label in CLOSED and name not in WITHOUT_SAMPLES else None
            for word in value.strip('"').split("|") if words and "$" not in value else ():
                check(word in words, f"{where}: {label} is never {word}, but one of {words}")
    bare = re.sub(rf"\{{(?:{texts}|[^}}\"])*\}}|{texts}", " ", expr)
    for name in re.findall(r"\b(?:makegate|process|instance:|caller:|answer:)[\w:]+", bare):
        check(name in known or name in recorded, f"{where}: makegate has no metric {name}")
    named = {name for name in re.findall(r"[a-zA-Z_][\w:]*", bare) if name in known}
    labels = {label for name in named for label in known[name]} | SCRAPED | {"le"}
    for listed in re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", bare):
        for label in filter(None, re.split(r"[\s,]+", listed)):
            check(label in labels or any(name in bare for name in recorded), f"{where}: {label} is no label of {named}")


def dashboard(known, recorded):
    import yaml

    board = json.loads(DASHBOARD.read_text())
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    check(list(variables) == ["datasource", "job", "instance"] and variables["datasource"]["query"] == "prometheus", f"variables: {list(variables)}")
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    check(len({panel["id"] for panel in board["panels"]}) == len(board["panels"]), "two panels have the same id")
    taken = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        check(not cells & taken and max(x for x, _ in cells) < 24, f"{panel['title']}: it covers another panel, or more than the width")
        taken |= cells
    queries = []
    for panel in panels:
        title = panel["title"]
        check(panel["description"] and panel["fieldConfig"]["defaults"]["unit"], f"{title}: its description or unit")
        for target in [panel, *panel["targets"]]:
            check(target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}, f"{title}: its data source is not the variable")
        for target in panel["targets"]:
            expr = target["expr"]
            check(expr.count('{job=~"$job",instance=~"$instance"') == len(re.findall(r"\b(?:makegate|process)_\w+", expr)),
                  f"{title}: not every metric is of the instances that were chosen")
            are_exposed(title, expr, known, recorded)
            shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) - SCRAPED
            check(all(re.search(rf"\((?:[^()]*\W)?{label}\W", expr) for label in shown), f"{title}: its legend shows {shown}")
            queries.append(expr)
    for name in ("job", "instance"):
        are_exposed(name, variables[name]["definition"].removeprefix("label_values(").rpartition(",")[0], known, recorded)
    parse(queries)
    (provider,) = yaml.safe_load((DASHBOARD.parent / "provisioning/dashboards/makegate.yaml").read_text())["providers"]
    (source,) = yaml.safe_load((DASHBOARD.parent / "provisioning/datasources/makegate.yaml").read_text())["datasources"]
    check(provider["type"] == "file" and provider["options"]["path"] and source["type"] == "prometheus", "grafana: provisioning")
    print(f"grafana: {len(panels)} panels with {len(queries)} queries (not shown: Grafana is not to be had here)")


def parse(queries):
    """promtool parses only what is in a file of rules."""
    rules = [{"record": f"query_{at}", "expr": query.replace("$__rate_interval", "5m")} for at, query in enumerate(queries)]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        json.dump({"groups": [{"name": "queries", "rules": rules}]}, file)
        file.flush()
        promtool("check", "rules", file.name)


def commands(makegate, told, temporary):
    """makegate accepts the commands in the runbooks: none ends with 2, which is a mistake in how it was called."""
    text = RUNBOOKS.read_text()
    blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL))
    lines = set(re.findall(r"^(makegate .*)$", blocks, re.MULTILINE) + re.findall(r"`(makegate [a-z][^`]*--[^`]+)`", text))
    check(len(lines) > 20, f"only {len(lines)} commands")
    (folder,) = temporary.glob("*/audit")
    environment = {**os.environ, "MAKEGATE_OPERATOR_URL": told["operator"], "MAKEGATE_OPERATOR_KEY": told["operator_key"]}
    (temporary / "secret").write_text("of-the-runbooks-0123456789abcdef")
    (temporary / "makegate.toml").write_text(
        f'[operator]\nlisten = "{told["operator"].removeprefix("http://")}"\nkey_file = "secret"\n'
        f'[upstream]\nurl = "{told["sandbox"]}"\ntoken_file = "secret"\n[audit]\ndir = "{folder}"\n')
    places = {"/etc/makegate/makegate.toml": str(temporary / "makegate.toml"), "/var/lib/makegate/audit": str(folder),
              "CALLER": told["callers"][1]["name"]}
    for line in sorted(lines):
        words = [places.get(word, word) for word in shlex.split(line)]
        ran = subprocess.run([makegate, *words[1:]], capture_output=True, text=True, env=environment, cwd=temporary, stdin=subprocess.DEVNULL)
        check(ran.returncode != 2, f"{line}: {ran.stdout}{ran.stderr}")
    print(f"{len(lines)} commands of the runbooks: makegate knows them")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

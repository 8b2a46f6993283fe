"""What reads the log: lnav's format, on a log that a demo just wrote, and the samples for Vector and Fluent Bit."""

import csv
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from tools import check, demo

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


def check_all(makegate):
    with tempfile.TemporaryDirectory() as temporary, demo(makegate, temporary) as told:
        requests(told)
        columns = next(csv.reader([export(makegate, told, "csv").splitlines()[0]]))
        records = [json.loads(line) for line in export(makegate, told, "json").splitlines()]
        (folder,) = Path(temporary).glob("*/audit")
        segments = {path.name for path in folder.glob("[0-9]*.jsonl")}
        samples(folder, segments)
        lnav(Path(temporary), folder, columns, records)


def requests(told):
    """Some of each kind: a miss, a hit, refusals with and without a caller, a write."""
    every, reader = told["callers"][0]["key"], told["callers"][1]["key"]
    path = "/api/v2/organizations"
    for key, method, target, body in (
        (every, "GET", f"{path}/11", None), (every, "GET", f"{path}/11", None), (reader, "GET", f"{path}/13", None),
        ("wrong", "GET", f"{path}/11", None), (every, "PATCH", f"{path}/11", b'{"name": "renamed"}'),
    ):
        headers = {"Authorization": f"Token {key}", **({"Content-Type": "application/json"} if body else {})}
        request = urllib.request.Request(told["gateway"] + target, method=method, data=body, headers=headers)
        try:
            urllib.request.urlopen(request, timeout=30).close()
        except urllib.error.HTTPError as refused:
            refused.close()


def export(makegate, told, form):
    command = [makegate, "audit", "export", "--url", told["operator"], "-o", form]
    return subprocess.run(command, check=True, capture_output=True, text=True,
                          env={**os.environ, "MAKEGATE_OPERATOR_KEY": told["operator_key"]}).stdout


def samples(folder, segments):
    import yaml

    vector = yaml.safe_load((DEPLOY / "vector/makegate.yaml").read_text())
    (source,) = vector["sources"].values()
    inputs = {*vector["sources"], *vector["transforms"]}
    for part in [*vector["transforms"].values(), *vector["sinks"].values()]:
        check(set(part["inputs"]) <= inputs, f"vector: {part['inputs']} is not there")
    fluent_bit = yaml.safe_load((DEPLOY / "fluent-bit/makegate.yaml").read_text())
    (tail,) = fluent_bit["pipeline"]["inputs"]
    check(tail["parser"] in [parser["name"] for parser in fluent_bit["parsers"]], "fluent-bit: the parser is not there")
    for pattern in [*source["include"], tail["path"]]:
        parent, _, name = pattern.rpartition("/")
        check(parent == "/var/lib/makegate/audit", f"{pattern}: not where the other files in deploy/ have the log")
        found = {file for file in os.listdir(folder) if fnmatch.fnmatch(file, name)}
        check(found == segments, f"{pattern} finds {found}, and the segments are {segments}")
    print("vector and fluent-bit: they read the segments and nothing else (not run: neither is to be had here)")


def lnav(temporary, folder, columns, records):
    file = DEPLOY / "lnav/makegate.json"
    missing = set(columns) - json.loads(file.read_text())["makegate_audit"]["value"].keys() - {"time"}
    check(not missing, f"lnav does not know {missing}")
    if not shutil.which("lnav"):
        print("SKIPPED: lnav is missing", file=sys.stderr)
        return
    environment = {**os.environ, "HOME": str(temporary), "XDG_CONFIG_HOME": "", "TERM": "dumb"}

    def run(*arguments):
        told = subprocess.run(["lnav", *map(str, arguments)], capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
        check(told.returncode == 0 and "error" not in told.stderr, f"lnav {arguments}: {told.stdout}{told.stderr}")
        return told.stdout

    run("-i", file)
    query = ";SELECT seq, log_level, caller, status, answer, refusal, outcome, operation FROM makegate_audit ORDER BY seq"
    rows = json.loads(run("-n", "-c", query, "-c", ":write-json-to -", *sorted(folder.glob("*.jsonl"))))
    # This lnav writes some numbers as texts.
    rows = [{name: None if value is None else str(value) for name, value in row.items()} for row in rows]
    level = {None: "info", "MG1": "warning", "MG2": "error", "MG5": "error"}
    for record in records:
        refusal = record.get("refusal")
        expected = {name: record.get(name) for name in ("seq", "caller", "status", "answer", "refusal", "outcome", "operation")}
        expected["log_level"] = level[refusal and refusal[:3]]
        expected = {name: None if value is None else str(value) for name, value in expected.items()}
        check(expected in rows, f"lnav shows no {expected}, but {rows}")
    (command,) = re.findall(r"^lnav -n .*$", (DEPLOY.parent / "docs/deploying.md").read_text(), re.MULTILINE)
    told = subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=environment, cwd=folder.parent, stdin=subprocess.DEVNULL)
    check("MG132" in told.stdout, f"{command}: {told.stdout}{told.stderr}")
    process = temporary / "process.log"
    process.write_text('{"ts":"2026-11-30T01:43:40.377327Z","level":"error","msg":"the upstream is unreachable","why":"refused"}\n')
    rows = json.loads(run("-n", "-c", ";SELECT log_level, log_body FROM makegate_process", "-c", ":write-json-to -", process))
    check(rows == [{"log_level": "error", "log_body": "the upstream is unreachable"}], f"lnav reads the process log as {rows}")
    print(f"lnav: {len(records)} records of a demo, and the process log")

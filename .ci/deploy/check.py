#!/usr/bin/env python3
"""Checks everything in deploy/ that needs no container: .ci/deploy/check.py MAKEGATE

The systemd units, the Kubernetes files and the Helm chart, the compose files, GitHub's workflows, and what reads the log.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import tools
from tools import check

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
EXPOSURE_MAX = 1.5


def main(makegate):
    why_not = tools.python_with_packages()
    systemd(makegate)
    if why_not:
        print(f"SKIPPED: everything but the units, because the tools cannot be installed: {why_not}", file=sys.stderr)
        return
    import kubernetes
    import log

    kubernetes.check_all(makegate)
    log.check_all(makegate)
    schemas()


def systemd(makegate):
    if not shutil.which("systemd-analyze"):
        print("SKIPPED: the systemd units, because systemd-analyze is missing", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        units = []
        for name in ("makegate.service", "makegate.socket"):
            unit = Path(folder) / name
            text = (DEPLOY / name).read_text()
            unit.write_text(text.replace("ExecStart=makegate ", f"ExecStart={makegate} "))
            units.append(unit)
        told = analyze("verify", "--man=no", *units)
        wrong = [line for line in told.splitlines() if any(str(unit) in line for unit in units) and not newer(line)]
        check(not wrong, "\n".join(wrong))
        told = analyze("security", "--offline=true", "--no-pager", units[0])
    level = re.search(r"Overall exposure level for \S+: ([\d.]+)", told)
    check(level, f"systemd-analyze security: {told}")
    check(float(level[1]) <= EXPOSURE_MAX, f"systemd-analyze security: {level[1]}")
    print(f"makegate.service: exposure level {level[1]}")


def newer(line):
    """A setting that this systemd does not know yet, and ignores."""
    return "RefreshOnReload" in line or "notify-reload" in line


def analyze(*arguments):
    told = subprocess.run(["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return told.stdout + told.stderr


def schemas():
    command = [sys.executable, "-m", "check_jsonschema", "--quiet"]
    for schema, files in (
        (["--builtin-schema", "vendor.compose-spec"], [DEPLOY / "compose.yaml", DEPLOY / "compose-replicas.yaml"]),
        (["--builtin-schema", "vendor.github-workflows"], sorted((ROOT / ".github/workflows").iterdir())),
        (["--check-metaschema"], [DEPLOY / "helm/makegate/values.schema.json"]),
    ):
        told = subprocess.run([*command, *schema, *files], capture_output=True, text=True)
        check(told.returncode == 0, f"{schema}: {told.stdout}{told.stderr}")
        print(f"{', '.join(file.name for file in files)}: valid")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

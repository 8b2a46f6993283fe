#!/usr/bin/env python3
"""Builds deploy/Containerfile's image from a binary that is there already, and runs it as its head and the compose files say:
.ci/deploy/container.py BINARY

No registry is asked: the stage that compiles is left out, and what it would leave behind is put together here. A machine that cannot run
containers says why, and nothing fails.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import tools
from compose import Composed, published_anywhere, why_no_postgres
from tools import check

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
SIZE_MAX = 25_000_000
USER = 65532
KEY = "5b9b0b0e-0c5e-4a2e-9d55-0f7c9a1f3c11"


def main(binary):
    no_compose = tools.python_with_packages()
    for tool in ("podman", "buildah"):
        if not shutil.which(tool) and not installed(tool):
            return skip(f"{tool} is missing and could not be installed")
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine(Path(scratch))
        try:
            size = engine.build(binary)
            print(f"image: {size / 1e6:.1f} MB")
            check(size < SIZE_MAX, f"the image has {size} bytes")
            why_not = engine.find_options()
            if why_not:
                return skip(f"the image was built, but no container runs here: {why_not}")
            as_its_head_says(engine, Path(scratch))
            if no_compose:
                return skip(f"compose.yaml, because PyYAML cannot be installed: {no_compose}")
            as_compose_says(engine, Path(scratch))
            as_compose_replicas_says(engine, Path(scratch))
        finally:
            engine.tidy()


def skip(why):
    print(f"SKIPPED: {why}", file=sys.stderr)


def installed(tool):
    if os.getuid() != 0 or not shutil.which("apt-get"):
        return False
    packages = ["podman", "buildah", "runc", "containernetworking-plugins", "iptables"]
    subprocess.run(["apt-get", "update"], capture_output=True)
    run = subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *packages], capture_output=True, text=True)
    return run.returncode == 0 and bool(shutil.which(tool))


class Engine:
    """podman and buildah, with a store of their own."""

    def __init__(self, scratch):
        self.scratch = scratch
        self.store = ["--root", f"{scratch}/store", "--runroot", f"{scratch}/run", "--storage-driver", "vfs"]
        self.runtime, self.options = [], []
        self.volumes = set()

    def build(self, binary):
        context = self.scratch / "context"
        image = context / "image"
        install(binary, image / "usr/local/bin/makegate", 0o755)
        for library in libraries(binary):
            install(library, image / library.relative_to("/"), 0o755)
        install(Path("/etc/ssl/certs/ca-certificates.crt"), image / "etc/ssl/certs/ca-certificates.crt", 0o644)
        (context / "state").mkdir()
        last = "FROM scratch" + (DEPLOY / "Containerfile").read_text().split("\nFROM scratch")[1]
        stage = re.compile(r"^(COPY) --from=build( --chown=\S+)? /(image|state) ", re.MULTILINE)
        check(len(stage.findall(last)) == last.count("--from=") == 2, "the last stage takes something new from the one before")
        (context / "Containerfile").write_text(stage.sub(r"\1\2 \3 ", last))
        # Docker's format has a place for HEALTHCHECK.
        command = ["buildah", *self.store, "bud", "--isolation", "chroot", "--format", "docker", "-t", "makegate"]
        subprocess.run([*command, "-q", "-f", f"{context}/Containerfile", context], check=True, stdout=subprocess.DEVNULL)
        return int(self.podman("image", "inspect", "makegate", "--format", "{{.Size}}").strip())

    def find_options(self):
        """What `podman run` needs on this machine, from what it needs elsewhere on: another runtime, or lower limits."""
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        why = ""
        for runtime in ([], ["--runtime", "runc"]):
            for options in ([], limits):
                self.runtime, self.options = runtime, options
                ran = self.try_podman("run", "--rm", *options, "makegate", "--version")
                if ran.returncode == 0:
                    print(f"podman {' '.join(runtime)} run {' '.join(options)}: {ran.stdout.strip()}")
                    return None
                why = ran.stderr.strip()
        return why

    def try_podman(self, *arguments):
        command = ["podman", *self.store, *self.runtime, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)

    def podman(self, *arguments):
        ran = self.try_podman(*arguments)
        check(ran.returncode == 0, f"podman {' '.join(map(str, arguments))}: {ran.stderr.strip()}")
        return ran.stdout

    def start(self, *arguments):
        return self.podman("run", "-d", *self.options, *arguments).strip()

    def inspect(self, container, what):
        return self.podman("inspect", container, "--format", what).strip()

    def port(self, container, inside):
        told = self.podman("port", container, f"{inside}/tcp").strip()
        check(":" in told, f"it does not run: {self.try_podman('logs', container).stderr}")
        return int(told.rsplit(":", 1)[1])

    def tidy(self):
        self.try_podman("rm", "--all", "--force", "--time", "5")
        self.try_podman("volume", "rm", "--all", "--force")


def install(source, target, mode):
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
    target.chmod(mode)


def libraries(binary):
    """What a binary needs that is not static: CI has no static one, whose build takes minutes."""
    told = subprocess.run(["ldd", binary], capture_output=True, text=True).stdout
    return [Path(path) for path in re.findall(r"(/\S+)", told) if path != str(binary)]


def answer(port, path, key=None, method="GET", body=None):
    """The status and body of an answer, waiting until somebody listens."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", method=method, data=body and body.encode())
    if body:
        request.add_header("Content-Type", "application/json")
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    for _ in range(100):
        try:
            with urllib.request.urlopen(request, timeout=30) as told:
                return told.status, told.read().decode()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read().decode()
        except OSError:
            time.sleep(0.1)
    sys.exit(f"FAILED: nobody listens at port {port}")


def as_its_head_says(engine, scratch):
    head = (DEPLOY / "Containerfile").read_text()
    command = re.search(r"docker run -d (.*) makegate`$", head, re.MULTILINE).group(1)
    folder = scratch / "folder"
    folder.mkdir(mode=0o755)
    config = (DEPLOY / "container.toml").read_text().replace("0" * 64, hashlib.sha256(KEY.encode()).hexdigest())
    write(folder / "makegate.toml", config)
    write(folder / "operator", "an-operator-key-for-one-test")
    write(folder / "make", "a-token-that-nobody-sends")
    options = published_anywhere(command.replace('"$PWD"', str(folder)).split())
    container = engine.start(*options, "makegate")
    gateway, operator = engine.port(container, 8080), engine.port(container, 8081)
    for port in (gateway, operator):
        check(answer(port, "/livez")[0] == 200, "/livez at a published port")
    check(answer(gateway, "/api/v2/organizations")[0] == 401, "a request without a key")
    process = Path("/proc") / engine.inspect(container, "{{.State.Pid}}")
    status = process.joinpath("status").read_text()
    ids = re.search(r"^Uid:\s(\d+)\s(\d+)", status, re.MULTILINE).groups()
    check(set(ids) == {str(USER)}, f"it runs as {ids}")
    check(re.search(r"^CapEff:\s0+$", status, re.MULTILINE), "it has capabilities")
    root = [line.split()[5] for line in process.joinpath("mountinfo").read_text().splitlines() if line.split()[4] == "/"]
    check(all("ro" in options.split(",") for options in root), f"its root can be written: {root}")
    healthy(engine, container)
    told = engine.podman("exec", container, "makegate", "doubts", "list")
    check("REQUEST" in told.upper(), f"doubts list in the container: {told}")
    # The health check follows the configuration, wherever the doors are.
    stop(engine, container)
    write(folder / "makegate.toml", config.replace("0.0.0.0:8081", "127.0.0.1:9999"))
    container = engine.start(*[option for option in options if option not in ("--name", "makegate")], "makegate")
    check(answer(engine.port(container, 8080), "/livez")[0] == 200, "/livez after a new start with the same log")
    healthy(engine, container)
    stop(engine, container)
    print("as deploy/Containerfile says: answers at its ports, uid 65532, no capability, root read-only, healthy, ends with 0")


def write(path, text):
    path.write_text(text)
    os.chown(path, USER, USER)
    path.chmod(0o400)


def healthy(engine, container):
    command = json.loads(engine.inspect(container, "{{json .Config.Healthcheck.Test}}"))
    check(command[:1] == ["CMD"], f"the image's HEALTHCHECK is {command}")
    for _ in range(50):
        ran = engine.try_podman("exec", container, *command[1:])
        if ran.returncode == 0:
            return
        time.sleep(0.2)
    sys.exit(f"FAILED: {command}: {ran.stderr}")


def stop(engine, container):
    engine.podman("stop", "--time", "40", container)
    code = engine.inspect(container, "{{.State.ExitCode}}")
    check(code == "0", f"it ended with {code}: {engine.podman('logs', container)}")
    engine.podman("rm", container)


def as_compose_says(engine, scratch):
    """Both services of compose.yaml."""
    values = {"OPERATOR_KEY": "an-operator-key-for-one-test", "DASHBOARD_SHA256": hashlib.sha256(KEY.encode()).hexdigest()}
    composed = Composed(engine, scratch, DEPLOY / "compose.yaml", values)
    composed.start()
    makegate = composed.containers["makegate"]
    gateway, operator = (engine.port(makegate, port) for port in (8080, 8081))
    until(lambda: answer(gateway, "/api/v2/organizations", KEY), lambda status, body: status == 200 and '"organizations"' in body)
    check(answer(operator, "/quota.json", values["OPERATOR_KEY"])[0] == 200, "the operator door")
    healthy(engine, makegate)
    for container in reversed(list(composed.containers.values())):
        stop(engine, container)
    print("as deploy/compose.yaml says: a request through the gateway to the simulated Make")


def as_compose_replicas_says(engine, scratch):
    """Two replicas and PostgreSQL: what one writes the other reads, one is enough, and without PostgreSQL no memory is believed."""
    why_not = why_no_postgres()
    if why_not:
        return skip(f"compose-replicas.yaml: {why_not}")
    values = {"OPERATOR_KEY": "an-operator-key-for-one-test", "DASHBOARD_SHA256": hashlib.sha256(KEY.encode()).hexdigest(),
              "POSTGRES_PASSWORD": "a-password-for-one-test"}
    composed = Composed(engine, scratch, DEPLOY / "compose-replicas.yaml", values)
    try:
        composed.start()
        one, two, operator, other = (engine.port(composed.containers["sandbox"], port) for port in (8080, 8090, 8081, 8091))
        path = "/api/v2/organizations/11"
        for port in (one, two):
            until(lambda: answer(port, path, KEY), lambda status, _: status == 200)
        members = lambda port: sorted((one["name"], one["state"]) for one in json.loads(answer(port, "/replicas.json", values["OPERATOR_KEY"])[1])["replicas"])
        until(lambda: (200, members(other)), lambda _, found: found == [("makegate-1", "live"), ("makegate-2", "live")])
        status, body = answer(one, path, KEY, method="PATCH", body='{"name": "a new name"}')
        check(status == 200, f"a write: {status} {body}")
        status, body = answer(two, path, KEY)
        check(status == 200 and "a new name" in body, f"the other replica's answer after a write: {status} {body}")
        for name in ("makegate-1", "makegate-2"):
            healthy(engine, composed.containers[name])
        killed = composed.containers.pop("makegate-1")
        engine.podman("kill", killed)
        engine.podman("wait", killed)
        engine.podman("rm", killed)
        status, body = answer(two, path, KEY)
        check(status == 200, f"one replica alone: {status} {body}")
        composed.postgres.stop()
        composed.postgres = None
        until(lambda: answer(two, path, KEY), lambda status, body: status == 503 and "MG241" in body)
        for container in reversed(list(composed.containers.values())):
            stop(engine, container)
    finally:
        if composed.postgres:
            composed.postgres.stop()
    print("as deploy/compose-replicas.yaml says: a write through one replica is read through the other, which goes on alone")


def until(ask, is_right):
    for _ in range(150):
        status, body = ask()
        if is_right(status, body):
            return
        time.sleep(0.2)
    sys.exit(f"FAILED: {status} {body}")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())

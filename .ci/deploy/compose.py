"""The services of a compose file with their options, as docker compose starts them, with podman alone. No registry is asked: the PostgreSQL that a
file names is this machine's, in the network of the service that has it."""

import glob
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from tools import check

KNOWN = {"build", "image", "ports", "environment", "configs", "volumes", "read_only", "cap_drop", "security_opt", "stop_grace_period",
         "restart", "command", "network_mode", "depends_on", "user", "tmpfs", "healthcheck"}


class Composed:
    def __init__(self, engine, scratch, path, values):
        import yaml  # Not everybody who needs this file's other functions has it.

        text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda match: values[match[1]], path.read_text())
        self.engine, self.scratch, self.name = engine, scratch, path.stem
        self.file = yaml.safe_load(text)
        self.containers, self.ended = {}, set()
        self.postgres = None

    def start(self):
        for name, service in self.file["services"].items():
            check(set(service) <= KNOWN, f"{self.name}: this test does not know {set(service) - KNOWN}")
            before = service.get("depends_on", [])
            check(set(before) <= {*self.containers, *self.ended, "postgres"}, f"{self.name}: {name} is started before {before}")
            for other in before if isinstance(before, dict) else ():
                self.wait(other, before[other]["condition"])
            if service["image"].rpartition("/")[2].startswith("postgres:"):
                self.postgres = Postgres(self.process(self.shared(service)), service["environment"])
            else:
                self.containers[name] = self.engine.start(*self.options(service), service["image"], *service.get("command", []))

    def options(self, service):
        options = ["--read-only"] if service["read_only"] else []
        options += [f"--cap-drop={capability}" for capability in service["cap_drop"]]
        options += [f"--security-opt={option}" for option in service.get("security_opt", [])]
        options += [f"--env={key}={value}" for key, value in service.get("environment", {}).items()]
        for volume in service.get("volumes", []):
            options.append(f"--volume={self.name}-{volume}")
        for config in service.get("configs", []):
            content = self.scratch / f"{self.name}-{config['source']}"
            content.write_text(self.file["configs"][config["source"]]["content"])
            options.append(f"--volume={content}:{config['target']}:ro")
        for port in published_anywhere(service.get("ports", [])):
            options += ["-p", port]
        if "network_mode" in service:
            options.append(f"--network=container:{self.shared(service)}")
        return options

    def shared(self, service):
        return self.containers[service["network_mode"].removeprefix("service:")]

    def process(self, container):
        return int(self.engine.inspect(container, "{{.State.Pid}}"))

    def wait(self, name, condition):
        if condition == "service_healthy":
            return self.postgres.wait()
        check(condition == "service_completed_successfully", f"{self.name}: this test does not know {condition}")
        if name in self.ended:
            return
        self.ended.add(name)
        container = self.containers.pop(name)
        code = self.engine.podman("wait", container).strip()
        check(code == "0", f"{self.name}: {name} ended with {code}: {self.engine.try_podman('logs', container).stderr}")
        self.engine.podman("rm", container)


class Postgres:
    """PostgreSQL in the network of a process."""

    def __init__(self, process, environment):
        self.folder = Path(tempfile.mkdtemp(prefix="makegate-postgres-"))
        self.user, password = environment["POSTGRES_USER"], environment["POSTGRES_PASSWORD"]
        (self.folder / "password").write_text(password)
        for path in (self.folder, self.folder / "password"):
            shutil.chown(path, "postgres", "postgres")
        data = self.folder / "data"
        self.run("initdb", "-D", data, "-U", self.user, "-A", "scram-sha-256", "--pwfile", self.folder / "password", "--no-sync")
        self.run("postgres", "--single", "-D", data, "postgres", stdin=f"create database {self.user}\n")
        settings = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
        log = open(self.folder / "log", "w")
        self.enter = ["nsenter", f"--net=/proc/{process}/ns/net"]
        self.server = subprocess.Popen([*self.enter, *as_postgres("postgres", "-D", data, *settings)], stdout=log, stderr=log)

    def run(self, *command, stdin=""):
        ran = subprocess.run(as_postgres(*command), input=stdin, capture_output=True, text=True, cwd="/")
        check(ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}")

    def wait(self):
        for _ in range(100):
            ready = subprocess.run([*self.enter, binary("pg_isready"), "-h", "127.0.0.1", "-U", self.user], capture_output=True, text=True)
            if ready.returncode == 0:
                return
            time.sleep(0.1)
        check(False, f"PostgreSQL does not start: {(self.folder / 'log').read_text()}")

    def stop(self):
        self.server.send_signal(signal.SIGINT)  # It does not wait for its clients.
        self.server.wait(timeout=60)
        shutil.rmtree(self.folder)


def why_no_postgres():
    if os.getuid() != 0 or not shutil.which("nsenter"):
        return "only root can run this machine's PostgreSQL in a container's network"
    return None if binary("initdb") else "PostgreSQL is missing"


def binary(name):
    """Debian has PostgreSQL's programs in folders of their own."""
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), key=lambda path: int(path.split("/")[4]))
    return shutil.which(name) or (found[-1] if found else None)


def as_postgres(program, *arguments):
    """It refuses to run as root."""
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", binary(program), *map(str, arguments)]


def published_anywhere(arguments):
    """The same ports, but free ones on this machine."""
    return [re.sub(r"^127\.0\.0\.1:\d+:(\d+)$", r"127.0.0.1::\1", argument) for argument in arguments]

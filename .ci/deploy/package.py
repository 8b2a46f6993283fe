#!/usr/bin/env python3
"""Makes the Debian package of a release binary, target/debian/makegate_*.deb: .ci/deploy/package.py BINARY [--try]

With --try, and as root, installs the package, starts makegate as its unit says (without systemd, which need not run here), asks it, ends it,
and removes and purges the package again.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import check

ROOT = Path(__file__).resolve().parents[2]
CONFIG = Path("/etc/makegate/makegate.toml")
STATE = Path("/var/lib/makegate")
# One of those that systemd gives with DynamicUser.
USER = 61184


def main(binary, *options):
    if not shutil.which("cargo-deb"):
        print("cargo-deb is missing; cargo install builds it", flush=True)
        if subprocess.run(["cargo", "install", "cargo-deb", "--locked"]).returncode != 0:
            print("SKIPPED: cargo-deb could not be installed", file=sys.stderr)
            return
    package = packaged(binary)
    print(f"{package.relative_to(ROOT)}: {package.stat().st_size / 1e6:.1f} MB")
    if "--try" in options:
        why_not = cannot_try()
        if why_not:
            print(f"SKIPPED: installing the package, because {why_not}", file=sys.stderr)
        else:
            tried(package)


def packaged(binary):
    folder = ROOT / "target/package"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "man").mkdir(parents=True)
    run(binary, "man", "--dir", folder / "man")
    for shell, name in (("bash", "makegate.bash"), ("zsh", "_makegate"), ("fish", "makegate.fish")):
        (folder / name).write_text(run(binary, "completions", shell))
    built = ROOT / "target/release/makegate"
    if binary != built:
        built.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(binary, built)
    run("cargo", "deb", "--no-build", "--no-strip", "--quiet", cwd=ROOT)
    return max((ROOT / "target/debian").glob("makegate_*.deb"), key=lambda path: path.stat().st_mtime)


def run(*command, **options):
    told = subprocess.run(list(map(str, command)), capture_output=True, text=True, stdin=subprocess.DEVNULL, **options)
    check(told.returncode == 0, f"{shlex.join(map(str, command))}: {told.stdout}{told.stderr}")
    return told.stdout


def cannot_try():
    if os.getuid() != 0:
        return "only root can"
    if not shutil.which("dpkg"):
        return "there is no dpkg"
    if CONFIG.parent.exists() or STATE.exists() or shutil.which("makegate"):
        return "there is a makegate on this machine"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True).returncode != 0:
        return "it would need the default ports, and no other network namespace can be had"
    return None


def tried(package):
    run("dpkg", "--install", package)
    try:
        files = run("dpkg", "--listfiles", "makegate").split()
        for file in ("/usr/bin/makegate", "/usr/share/man/man1/makegate.1.gz", "/usr/share/man/man1/makegate-audit-query.1.gz",
                     "/usr/share/bash-completion/completions/makegate"):
            check(file in files, f"the package lacks {file}")
        (unit,) = [Path(file) for file in files if file.endswith("/makegate.service")]
        run("/usr/bin/makegate", "check", "--config", CONFIG)
        started(unit.read_text())
        run("dpkg", "--remove", "makegate")
        check(not Path("/usr/bin/makegate").exists() and not unit.exists(), "removing leaves the binary or the unit")
        check(CONFIG.exists() and STATE.exists(), "removing takes the configuration or the log")
    finally:
        run("dpkg", "--purge", "makegate")
        shutil.rmtree(STATE, ignore_errors=True)
    check(not CONFIG.exists(), "purging leaves the configuration")
    print("the package: installed, started as its unit says (by hand: systemd need not run here), asked, ended with 0, removed, purged")


def started(unit):
    """What systemd would do: a user without rights, the credentials, the folder of the state, and a socket for READY."""
    setting = dict(re.findall(r"^(Type|ExecStart|StateDirectory|TimeoutStopSec)=(.*)$", unit, re.MULTILINE))
    credentials = re.findall(r"^LoadCredential=(\w+):", unit, re.MULTILINE)
    check(setting["Type"] == "notify-reload" and setting["StateDirectory"] == "makegate", f"the unit has changed: {setting}")
    STATE.mkdir(mode=0o700)
    os.chown(STATE, USER, USER)
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for name in credentials:
            secret = Path(folder) / name
            secret.write_text(f"a-secret-for-one-test-{name}")
            os.chown(secret, USER, USER)
            secret.chmod(0o400)
        ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ready.bind(f"{folder}/notify")
        os.chmod(f"{folder}/notify", 0o777)
        ready.settimeout(30)
        alone = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh"]
        weak = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "CREDENTIALS_DIRECTORY": folder, "NOTIFY_SOCKET": f"{folder}/notify"}
        process = subprocess.Popen([*alone, *weak, *shlex.split(setting["ExecStart"])], env=environment, cwd="/",
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            check("READY=1" in ready.recv(4096).decode(), "it does not say that it is ready")
            run("nsenter", "--net", "--target", process.pid, "makegate", "healthcheck", "--config", CONFIG)
            process.send_signal(signal.SIGTERM)
            _, told = process.communicate(timeout=int(setting["TimeoutStopSec"]))
            check(process.returncode == 0, f"it ended with {process.returncode}: {told}")
        except TimeoutError:
            process.kill()
            check(False, f"it does not say that it is ready: {process.communicate()[1]}")
        finally:
            process.kill()
            ready.close()
    check(list(STATE.glob("audit/*.jsonl")), "it has no log")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), *sys.argv[2:])

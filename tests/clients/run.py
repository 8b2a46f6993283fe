#!/usr/bin/env python3
"""Refusals reach the clients that people use, although the body is still being sent: tests/clients/run.py BINARY [--all]

Starts the binary's simulated Make and its service, plain and with TLS, in a temporary folder. Each client sends requests that are refused
before their body is read, to both doors, with bodies of several sizes; it has to see the status and the problem, and a good request behind
each of them has to be answered. A client that is not installed is skipped. With --all nothing is: what Python lacks is installed in a
folder below ~/.cache, and any other missing client is a failure.
"""

import argparse
import concurrent.futures
import functools
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import clients
from attempts import attempts, wrong
from doors import doors

PACKAGES = ["aiohttp", "requests"]
FAILURES_SHOWN = 10
SECONDS_MAX = 300  # for one client
PLAIN, TLS = (False,), (True,)
BY_LENGTH_OR_CHUNKED = ("length", "chunked")
CLIENTS = {
    "curl HTTP/1.1": (functools.partial(clients.curl, "1.1"), PLAIN + TLS, ("asked", *BY_LENGTH_OR_CHUNKED)),
    "curl HTTP/2": (functools.partial(clients.curl, "2"), TLS, BY_LENGTH_OR_CHUNKED),
    "Node fetch": (clients.node_fetch, PLAIN + TLS, BY_LENGTH_OR_CHUNKED),
    "Python http.client": (clients.http_client, PLAIN + TLS, BY_LENGTH_OR_CHUNKED),
    "Python requests": (clients.requests_session, PLAIN + TLS, BY_LENGTH_OR_CHUNKED),
    "Python aiohttp": (clients.aiohttp_session, PLAIN + TLS, BY_LENGTH_OR_CHUNKED),
}


def try_client(binary, pair):
    """Each has doors of its own: an operator door slows down who has sent too many wrong keys. Returns what to tell, and the failures."""
    name, tls = pair
    client, _, framings = CLIENTS[name]
    signal.signal(signal.SIGALRM, functools.partial(too_late, name))
    signal.alarm(SECONDS_MAX)
    with tempfile.TemporaryDirectory() as folder, doors(binary, folder, tls) as found:
        tried = list(attempts(found, framings))
        outcomes = list(client(found, tried, folder))
    signal.alarm(0)
    failures = [f"{attempt}: {why}" for attempt, outcome in zip(tried, outcomes, strict=True) if (why := wrong(attempt, outcome))]
    same = sum(outcome.same for outcome in outcomes)
    told = f"{name}{' with TLS' if tls else ''}: {len(tried)} refusals, a good request behind each"
    if same:
        told += f" ({same} on the same connection)"
    return f"{told}; {len(failures)} failed", failures


def too_late(name, *_):
    raise TimeoutError(f"{name} was not ready after {SECONDS_MAX} s")


def with_packages():
    """Starts the script again in an environment that has the packages, unless they are there."""
    if not any(clients.missing(f"Python {package}") for package in PACKAGES):
        return
    name = hashlib.sha256(" ".join([*PACKAGES, sys.version]).encode()).hexdigest()[:12]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / f"makegate-clients-{name}"
    if Path(sys.prefix) == folder:
        return  # it was started again already: the missing client is told
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", *PACKAGES], check=True)
        (folder / "complete").touch()
    os.execv(python, [python, *sys.argv])


def main():
    reader = argparse.ArgumentParser(usage="%(prog)s BINARY [--all]")
    reader.add_argument("binary", type=Path)
    reader.add_argument("--all", action="store_true")
    options = reader.parse_args()
    if options.all:
        with_packages()
    failed = False
    pairs = []
    for name, (_, kinds, _) in CLIENTS.items():
        if why := clients.missing(name):
            print(f"{'FAILED' if options.all else 'SKIPPED'}: {name}: {why}")
            failed |= options.all
        else:
            pairs += [(name, tls) for tls in kinds]
    with concurrent.futures.ProcessPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        for told, failures in pool.map(functools.partial(try_client, options.binary.resolve()), pairs):
            failed |= bool(failures)
            print(told, *failures[:FAILURES_SHOWN], sep="\n    ", flush=True)
            if len(failures) > FAILURES_SHOWN:
                print(f"    and {len(failures) - FAILURES_SHOWN} more")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

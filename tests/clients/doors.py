"""A simulated Make and a makegate in front of it, with both doors, in a temporary folder."""

import contextlib
import hashlib
import json
import ssl
import subprocess
import urllib.request
import uuid
from pathlib import Path
from typing import NamedTuple

ORGANIZATION = "/api/v2/organizations/11"
TOKEN = "sandbox-token"
# The pause that ends a connection has to be longer than any that a busy machine makes.
CONFIGURATION = """
version = 1
[gateway]
listen = "127.0.0.1:0"
{tls}
[operator]
listen = "127.0.0.1:0"
key_file = "operator"
{tls}
[upstream]
url = "{make}"
token_file = "token"
[audit]
dir = "audit"
[limits]
linger = "60s"
body = "60s"
body_gap = "60s"
"""
CALLER = """
[[caller]]
name = "{name}"
keys = ["sha256:{hash}"]
grants = {grants}
rate = "{rate}"
burst = {burst}
"""
TLS = 'tls = { cert = "tls/cert.pem", key = "tls/key.pem" }'


class Doors(NamedTuple):
    gateway: str
    operator: str
    keys: dict
    authority: str | None  # of the certificate


@contextlib.contextmanager
def running(command, sign):
    """A process that runs, and the line with which it says so; it is ended, and the end waited for."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True)
    try:
        told = []
        for line in process.stdout:
            told.append(line)
            if sign in line:
                break
        else:
            raise RuntimeError(f"{command[1]} did not start: {''.join(told)}")
        yield line.strip()
    finally:
        process.terminate()
        process.communicate(timeout=60)


@contextlib.contextmanager
def doors(binary, folder, tls):
    """Starts everything, with or without TLS; yields the Doors."""
    folder = Path(folder)
    keys = {name: str(uuid.uuid4()) for name in ("all", "reader", "spent", "operator", "unknown")}
    authority = None
    if tls:
        subprocess.run([binary, "cert", "new", "--dir", folder / "tls"], check=True, stdout=subprocess.DEVNULL)
        authority = str(folder / "tls/ca.pem")
    for name, secret in (("operator", keys["operator"]), ("token", TOKEN)):
        (folder / name).write_text(secret)
        (folder / name).chmod(0o600)
    plenty = str(10**6)
    sandbox = [binary, "sandbox", "--listen", "127.0.0.1:0", "--token", TOKEN, "--api-limit", plenty, "--account-limit", plenty]
    with running(sandbox, "http://") as make:
        text = CONFIGURATION.format(make=make, tls=TLS if tls else "")
        for name, grants, rate, burst in (
            ("all", ["*"], "60000/min", 10000),
            ("reader", ["organizations:read"], "60000/min", 10000),
            ("spent", ["*"], "1/h", 1),
        ):
            hashed = hashlib.sha256(keys[name].encode()).hexdigest()
            text += CALLER.format(name=name, hash=hashed, grants=json.dumps(grants), rate=rate, burst=burst)
        (folder / "makegate.toml").write_text(text)
        with running([binary, "serve", "--config", folder / "makegate.toml"], '"makegate started"') as line:
            started = json.loads(line)
            scheme = "https" if tls else "http"
            found = Doors(*(f"{scheme}://{started[door][0]}" for door in ("gateway", "operator")), keys, authority)
            spend(found)
            yield found


def spend(found):
    """Uses up the rate of the caller that has one request an hour."""
    request = urllib.request.Request(found.gateway + ORGANIZATION, headers={"Authorization": "Token " + found.keys["spent"]})
    context = ssl.create_default_context(cafile=found.authority) if found.authority else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    opener.open(request, timeout=60).close()

"""The clients. Each takes the attempts one after the other, as its users would, and yields an Outcome for each of them."""

import asyncio
import http.client
import importlib.util
import io
import json
import os
import shutil
import ssl
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from attempts import Outcome, body, pieces

SECONDS_MAX = 60


def curl(version, doors, attempts, folder):
    def fields(headers):
        return [word for name, value in headers.items() for word in ("-H", f"{name}: {value}")]

    folder = Path(folder)
    trusted = ["--cacert", doors.authority] if doors.authority else []
    common = ["--silent", "--show-error", "--noproxy", "*", "--max-time", str(SECONDS_MAX), f"--http{version}", *trusted]
    for attempt in attempts:
        sent, refusal = folder / f"{attempt.size}.json", folder / "refusal"
        if not sent.exists():
            sent.write_bytes(body(attempt.size))
        refusal.write_bytes(b"")
        refused = ["-X", attempt.method, *fields(attempt.headers), "-o", refusal, "-w", "%{http_code} %{http_version} %{content_type}\n"]
        refused += ["--upload-file", "-"] if attempt.framing == "chunked" else ["--data-binary", f"@{sent}"]
        if attempt.framing != "asked":
            refused += ["-H", "Expect:"]
        good = [*fields(attempt.good_headers), "-o", "/dev/null", "-w", "%{http_code} %{http_version} %{num_connects}\n"]
        command = ["curl", *common, *refused, attempt.door + attempt.path, "--next", *common, *good, attempt.door + attempt.good_path]
        with open(sent, "rb") as standard_input:
            done = subprocess.run(command, stdin=standard_input, capture_output=True, text=True, timeout=2 * SECONDS_MAX + 5)
        lines = [line.split(" ", 2) for line in done.stdout.splitlines()]
        if done.returncode or len(lines) != 2 or any(line[1] != version for line in lines):
            yield Outcome(error=f"exit code {done.returncode}, {done.stdout!r}, {done.stderr.strip()!r}")
            continue
        (status, _, kind), (answered, _, connects) = lines
        yield Outcome(int(status), kind, refusal.read_text(), int(answered), same=connects == "0")


def node_fetch(doors, attempts, folder):
    attempts = list(attempts)
    script = Path(__file__).parent / "fetch.mjs"
    trusting = {"NODE_EXTRA_CA_CERTS": doors.authority} if doors.authority else {}
    told = json.dumps([asdict(attempt) for attempt in attempts])
    process = subprocess.run(["node", script], input=told, capture_output=True, text=True, env=os.environ | trusting, timeout=600)
    lines = process.stdout.splitlines()
    for line in lines:
        yield Outcome(**json.loads(line))
    for _ in attempts[len(lines) :]:
        yield Outcome(error=f"node ended with {process.returncode}: {process.stderr.strip()}")


def http_client(doors, attempts, folder):
    context = {"context": ssl.create_default_context(cafile=doors.authority)} if doors.authority else {}
    make = http.client.HTTPSConnection if doors.authority else http.client.HTTPConnection
    links = {door: make(door.rpartition("/")[2], timeout=SECONDS_MAX, **context) for door in (doors.gateway, doors.operator)}
    for attempt in attempts:
        link = links[attempt.door]
        try:
            chunked = attempt.framing == "chunked"
            content = pieces(attempt.size) if chunked else body(attempt.size)
            link.request(attempt.method, attempt.path, content, attempt.headers, encode_chunked=chunked)
            socket = link.sock
            answer = link.getresponse()
            outcome = Outcome(answer.status, answer.headers["Content-Type"] or "", answer.read().decode())
            link.request("GET", attempt.good_path, headers=attempt.good_headers)
            outcome.same = link.sock is socket
            answer = link.getresponse()
            answer.read()
            outcome.good = answer.status
        except (OSError, http.client.HTTPException) as error:
            link.close()
            outcome = Outcome(error=repr(error))
        yield outcome


def requests_session(doors, attempts, folder):
    import requests

    with requests.Session() as session:
        session.trust_env = False
        session.verify = doors.authority
        for attempt in attempts:
            content = pieces(attempt.size) if attempt.framing == "chunked" else body(attempt.size)
            try:
                answer = session.request(attempt.method, attempt.door + attempt.path, data=content, headers=attempt.headers, timeout=SECONDS_MAX)
                outcome = Outcome(answer.status_code, answer.headers.get("Content-Type", ""), answer.text)
                outcome.good = session.get(attempt.door + attempt.good_path, headers=attempt.good_headers, timeout=SECONDS_MAX).status_code
            except requests.RequestException as error:
                outcome = Outcome(error=repr(error))
            yield outcome


def aiohttp_session(doors, attempts, folder):
    import aiohttp

    async def chunks(size):
        for piece in pieces(size):
            yield piece

    async def all_outcomes():
        context = ssl.create_default_context(cafile=doors.authority) if doors.authority else True
        limit = aiohttp.ClientTimeout(total=SECONDS_MAX)
        outcomes = []
        async with aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(ssl=context)) as session:
            for attempt in attempts:
                content = chunks(attempt.size) if attempt.framing == "chunked" else io.BytesIO(body(attempt.size))
                try:
                    async with session.request(attempt.method, attempt.door + attempt.path, data=content, headers=attempt.headers) as answer:
                        outcome = Outcome(answer.status, answer.content_type, await answer.text())
                    async with session.get(attempt.door + attempt.good_path, headers=attempt.good_headers) as answer:
                        await answer.read()
                        outcome.good = answer.status
                except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                    outcome = Outcome(error=repr(error))
                outcomes.append(outcome)
        return outcomes

    yield from asyncio.run(all_outcomes())


def missing(name):
    """Why that client cannot be tried here; None if it can."""
    program, module = name.split()
    if program == "Python":
        return None if importlib.util.find_spec(module) else f"{sys.executable} has no {module}"
    command, sign = {"curl": (["curl", "--version"], "HTTP2"), "Node": (["node", "-p", "typeof fetch"], "function")}[program]
    told = subprocess.run(command, capture_output=True, text=True).stdout if shutil.which(command[0]) else ""
    return None if sign in told else f"there is none, or it is too old: {' '.join(command)}"

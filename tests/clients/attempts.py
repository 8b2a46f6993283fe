"""What every client sends: requests that are refused before their body is read, each with a good one behind it; and what has to come."""

import json
from dataclasses import dataclass

from doors import ORGANIZATION

KIB = 1024
SMALL, BUFFERS, LARGE = 2 * KIB, 300 * KIB, 5 * KIB * KIB  # the second is about what sockets hold, the third past the limit of a body
ROUNDS = 3  # what depends on who is first shows rarely
JSON = "application/json"


@dataclass(frozen=True)
class Attempt:
    framing: str  # "length", "chunked", or "asked": with a length and, if the client does so by itself, Expect: 100-continue
    size: int
    method: str
    door: str
    path: str
    headers: dict
    status: int
    problem: str  # the code of the gateway door's problem, or the end of the type of the operator door's
    good_path: str
    good_headers: dict

    def __str__(self):
        return f"{self.method} {self.door}{self.path} ({self.status} {self.problem}), {self.size} bytes, {self.framing}"


@dataclass
class Outcome:
    """What a client saw: of the refusal, and the status of the good request behind it."""

    status: int = 0
    kind: str = ""
    body: str = ""
    good: int = 0
    same: bool = False  # the good request went over the connection of the refused one
    error: str = ""


def gateway_door(doors, size, framing):
    def headers(caller, kind=JSON):
        return {"Authorization": "Token " + doors.keys[caller], "Content-Type": kind}

    def refused(status, problem, method, path, fields):
        good = {"Authorization": "Token " + doors.keys["all"]}
        return Attempt(framing, size, method, doors.gateway, path, fields, status, problem, ORGANIZATION, good)

    too_large = (413, "MG155")
    announced = size == LARGE and framing != "chunked"
    yield refused(401, "MG112", "PATCH", ORGANIZATION, headers("unknown"))
    yield refused(404, "MG121", "POST", "/api/v2/nowhere", headers("all"))
    yield refused(405, "MG122", "PUT", ORGANIZATION, headers("all"))
    yield refused(403, "MG131", "PATCH", ORGANIZATION, headers("reader"))
    yield refused(429, "MG141", "PATCH", ORGANIZATION, headers("spent"))
    yield refused(*(too_large if announced else (415, "MG156")), "PATCH", ORGANIZATION, headers("all", "text/plain"))
    if size == LARGE:
        yield refused(*too_large, "PATCH", ORGANIZATION, headers("all"))


def operator_door(doors, size, framing):
    def refused(status, problem, method, path, key):
        headers = {"Authorization": "Bearer " + doors.keys[key], "Content-Type": JSON}
        good = {"Authorization": "Bearer " + doors.keys["operator"]}
        return Attempt(framing, size, method, doors.operator, path, headers, status, problem, "/doubts.json", good)

    yield refused(401, "wrong-key", "POST", "/cache/purge", "unknown")
    yield refused(405, "no-method", "PUT", "/doubts", "operator")
    if size != SMALL:
        yield refused(413, "body-too-large", "POST", "/cache/purge", "operator")


def attempts(doors, framings):
    for _ in range(ROUNDS):
        for framing in framings:
            for size in (SMALL, BUFFERS, LARGE):
                yield from gateway_door(doors, size, framing)
                yield from operator_door(doors, size, framing)


def wrong(attempt, outcome):
    """What is not as it has to be; None if all is well."""
    if outcome.error:
        return outcome.error
    came = f"{outcome.status} {outcome.kind} {outcome.body[:300]!r}"
    if outcome.status != attempt.status or outcome.kind != "application/problem+json":
        return f"came: {came}"
    try:
        problem = json.loads(outcome.body)
    except ValueError:
        return f"no JSON came: {came}"
    if attempt.problem not in (problem.get("code"), problem["type"].rpartition(":")[2]) or problem["status"] != attempt.status:
        return f"another problem came: {came}"
    return None if outcome.good == 200 else f"the good request behind it: {outcome.good}"


def body(size):
    """A JSON object of that many bytes."""
    return b'{"name":"' + b"a" * (size - 11) + b'"}'


def pieces(size):
    whole = body(size)
    for start in range(0, size, 16 * KIB):
        yield whole[start : start + 16 * KIB]

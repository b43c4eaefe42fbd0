#!/usr/bin/env python3
"""The same requests to a real Triton and to us; every difference is listed with its reason.

usage: run.py [--only PATTERN]... [--accept] [--show CASE]
       ROUNDHOUSE_BIN names our binary (target/debug/roundhouse); ORT_DYLIB_PATH or ROUNDHOUSE_RUNTIME_DIR as for the server

Exits with 1 where a difference has no reason in differences.py, where one of those does not occur any more, and where
docs/differences.md is not what came out; --accept writes it.
"""

import argparse
import collections
import fnmatch
import json
import struct
import sys
import tempfile
import time
from pathlib import Path

import cases_grpc
import cases_grpc_state
import cases_http
import cases_state
import report
import servers
from differences import NOTHING, REASONS

DOCUMENT = servers.ROOT / "docs/differences.md"


def leaves(theirs, ours, place=""):
    """Where two answers differ: (place, Triton's value, ours)."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        if theirs.get("status") != ours.get("status") or (
            "error" not in ours and theirs.get("code") != ours.get("code")
        ):
            # Another outcome: the rest differs because of it.
            yield f"{place}.answer".lstrip("."), brief(theirs), brief(ours)
            return
        for key in dict.fromkeys([*theirs, *ours]):
            yield from leaves(theirs.get(key, NOTHING), ours.get(key, NOTHING), f"{place}.{key}".lstrip("."))
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for at, (one, other) in enumerate(zip(theirs, ours)):
            yield from leaves(one, other, f"{place}.{at}".lstrip("."))
    elif not are_same(theirs, ours):
        yield place, theirs, ours


def are_same(theirs, ours):
    """Numbers by what they are as FP32 if they are that close: both print the shortest form of a type of their own choice."""
    if (
        isinstance(theirs, bool)
        or isinstance(ours, bool)
        or not all(isinstance(value, (int, float)) for value in (theirs, ours))
    ):
        return theirs == ours and type(theirs) is type(ours)
    if theirs == ours or (theirs != theirs and ours != ours):
        return True
    return isinstance(theirs, float) and abs(theirs) < 3.5e38 and struct.pack("f", theirs) == struct.pack("f", ours)


def brief(answer):
    """An outcome in a line: the status, and the error's text or what came in its place."""
    status = str(answer.get("status") or answer.get("code"))
    rest = next((answer[key] for key in ("json", "events", "message", "details", "body") if key in answer), "")
    if isinstance(rest, dict) and "error" in rest:
        rest = rest["error"]
    return f"{status} {rest if isinstance(rest, str) else json.dumps(rest)}".strip()


def chosen(patterns):
    found = {}
    for module in (cases_http, cases_grpc, cases_grpc_state, cases_state):
        for name, run in module.cases():
            if name in found:
                raise SystemExit(f"two cases are called {name!r}")
            if not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                found[name] = run
    return found


def answers(cases, *targets):
    """(case, Triton's answer, ours) in order. Where a server ends over a case, that is its answer, and both begin anew."""
    for at, (name, run) in enumerate(cases.items()):
        if at % 200 == 0:
            print(f"{at} of {len(cases)} cases", file=sys.stderr, flush=True)
        found = [run(target) for target in targets]
        texts = [json.dumps(answer) for answer in found]
        patience = [
            3 if any(word in text for word in ("no answer", "UNAVAILABLE", "Stub process")) else 0 for text in texts
        ]
        ended = [target.end(wait) for target, wait in zip(targets, patience)]
        yield name, *(end or answer for end, answer in zip(ended, found))
        if any(ended):
            for target in targets:
                target.stop()
                target.start()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only cases whose name is like this, as in a shell",
    )
    parser.add_argument("--accept", action="store_true", help=f"write {DOCUMENT.relative_to(servers.ROOT)}")
    parser.add_argument("--show", action="store_true", help="print both answers of every case")
    options = parser.parse_args()
    cases = chosen(options.only)
    begin = time.monotonic()
    found, equal, unexplained = collections.defaultdict(list), 0, []
    with tempfile.TemporaryDirectory(prefix="differential-") as name:
        folder = Path(name)
        targets = servers.triton(folder), servers.roundhouse(folder, servers.binary())
        with servers.running(*targets):
            started = time.monotonic() - begin
            for case, one, other in answers(cases, *targets):
                if options.show:
                    print(f"{case}\n  Triton      {json.dumps(one)}\n  Roundhouse  {json.dumps(other)}")
                different = list(leaves(one, other))
                equal += not different
                for place, *values in different:
                    reason = next((reason for reason in REASONS if reason.explains(case, place, *values)), None)
                    if reason is None:
                        unexplained.append((case, place, *values))
                    else:
                        found[reason].append((case, place, *values))
    print(f"servers started in {started:.0f} s, {len(cases)} cases asked in {time.monotonic() - begin - started:.0f} s")
    return verdict(options, cases, found, equal, unexplained)


def verdict(options, cases, found, equal, unexplained):
    for case, place, one, other in unexplained:
        print(f"UNEXPLAINED {case} | {place}\n    Triton      {json.dumps(one)}\n    Roundhouse  {json.dumps(other)}")
    print(report.summary(len(cases), equal, found, len({case for case, *_ in unexplained})))
    if options.only:
        return int(bool(unexplained))
    gone = [text for reason in REASONS for text in reason.gone(cases, found[reason])]
    for text in gone:
        print(f"NO LONGER DIFFERENT {text}")
    text = report.document(len(cases), equal, found)
    if options.accept and not unexplained and not gone:
        DOCUMENT.write_text(text)
    changed = not DOCUMENT.exists() or DOCUMENT.read_text() != text
    if changed:
        print(f"{DOCUMENT.relative_to(servers.ROOT)} is not what came out: look at the differences, then --accept")
    return int(bool(unexplained or gone or changed))


if __name__ == "__main__":
    sys.exit(main())

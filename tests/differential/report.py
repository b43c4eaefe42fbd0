"""The summary that a run prints, and the list of all differences that is kept in docs/."""

import json
import re

LONGEST = 200
COMMAND = "make differential"


def summary(asked, equal, found, unexplained):
    rows = [("cases", asked), ("equal", equal)]
    rows += [(f"  {reason.name}", len({case for case, *_ in rows})) for reason, rows in found.items() if rows]
    rows.append(("unexplained", unexplained))
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:{width}}  {count:5}" for name, count in rows)


def shown(value):
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")
    return text if len(text) <= LONGEST else text[:LONGEST] + " ..."


def anchor(heading):
    """As GitHub makes them."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def document(asked, equal, found):
    """Markdown. The same for the same answers: nothing in it is of this run or this machine."""
    lines = [
        "# What differs from Triton, case by case",
        "",
        f"Written by `{COMMAND}`, which sends {asked} requests, good and bad, to NVIDIA's Triton 2.51 and to Roundhouse: {equal} are",
        "answered alike. These are the others, each with its reason. *nothing* is a member that is not there. How the",
        "comparison is made: [tests/differential](../tests/differential/README.md).",
        "",
        "| reason | cases |",
        "|---|---|",
    ]
    ordered = [(reason, rows) for reason, rows in found.items() if rows]
    ordered.sort(key=lambda pair: pair[0].name)
    for reason, rows in ordered:
        lines.append(f"| [{reason.name}](#{anchor(reason.name)}) | {len({case for case, *_ in rows})} |")
    for reason, rows in ordered:
        lines += ["", f"## {reason.name}", "", reason.text]
        if not reason.is_listed:
            continue
        lines += ["", "| cases | where | Triton | Roundhouse |", "|---|---|---|---|"]
        alike = {}
        for case, place, one, other in rows:
            alike.setdefault((place, shown(one), shown(other)), []).append(case)
        for (place, one, other), cases in alike.items():
            names = ", ".join(f"`{case}`".replace("|", "\\|") for case in cases)
            lines.append(f"| {names} | {place} | {one} | {other} |")
    return "\n".join(lines) + "\n"

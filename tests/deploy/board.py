"""What must be true of Grafana's board: deploy/grafana/flowgate.json. Whether its queries have results is checked with a real
Prometheus, by the step prometheus of scripts/test."""

import json
import re

RUNBOOK = "https://github.com/flowgate/flowgate/blob/main/docs/runbook.md"
# Prometheus' own series.
BUILT_IN = {"up", "ALERTS"}
# They have no label for the instance, because alerts are about accounts, too.
WITHOUT_INSTANCE = {"ALERTS"}


def faults(root):
    board = json.loads((root / "deploy" / "grafana" / "flowgate.json").read_text())
    manual = (root / "docs" / "metrics.md").read_text()
    metrics = set(re.findall(r"^\| `(\w+)` \|", manual, re.M))
    labels = {}
    for label, values in re.findall(r"^\| `(\w+)`(?: of `\w+`)? \| (`.*`) \|$", manual, re.M):
        labels.setdefault(label, set()).update(re.findall(r"`([^`]*)`", values))
    headings = re.findall(r"^#+ (.*)$", (root / "docs" / "runbook.md").read_text(), re.M)
    anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    panels = [panel for panel in board["panels"] if panel["type"] != "row"]
    found = []

    for panel in panels:
        title = panel["title"]
        if len(panel.get("description", "")) < 20:
            found.append(f"{title}: no description")
        links = [link["url"].removeprefix(f"{RUNBOOK}#") for link in panel.get("links", [])]
        if not links or not set(links) <= anchors:
            found.append(f"{title}: links {links}, expected a section of docs/runbook.md")
        if panel["type"] == "stat" and not {"thresholds", "mappings"} & set(panel["fieldConfig"]["defaults"]):
            found.append(f"{title}: no thresholds")
        for target in panel["targets"]:
            found += [f"{title}: {fault}" for fault in query_faults(target["expr"], metrics, labels)]

    text = json.dumps([board["panels"], board["annotations"]])
    for variable in board["templating"]["list"]:
        if f"${variable['name']}" not in text and f"${{{variable['name']}}}" not in text:
            found.append(f"the variable {variable['name']} is not used")
    ids = [panel["id"] for panel in board["panels"]]
    found += [f"two panels have the id {number}" for number in set(ids) if ids.count(number) > 1]
    places = [(panel["title"], cell) for panel in board["panels"] for cell in cells(panel["gridPos"])]
    taken = [cell for _, cell in places]
    found += [f"{title}: covers another panel" for title, cell in places if taken.count(cell) > 1]
    if board["panels"][0]["title"].split(":")[0] != "Health":
        found.append("the board does not begin with health")
    if RUNBOOK not in [link["url"] for link in board["links"]]:
        found.append("no link to the runbook")
    return found


def query_faults(query, metrics, labels):
    named = {re.sub(r"_(bucket|sum|count)$", "", name): name for name in re.findall(r"\b(?:flowgate|process)_\w+", query)}
    found = [f"{name} is not in docs/metrics.md" for short, name in named.items() if short not in metrics and name not in metrics]
    selected = dict(re.findall(r"(\w+)\{([^}]*)\}", query))
    found += [f"{name} has no selector" for name in set(named.values()) - set(selected)]
    for name, selector in selected.items():
        if name not in metrics | set(named.values()) | BUILT_IN:
            found.append(f"unknown series {name}")
        for label, pattern in re.findall(r'(\w+)=~?"([^"$]*)"', selector):
            values = labels.get(label, set(pattern.split("|")))
            unknown = [each for each in pattern.split("|") if not any(re.fullmatch(each, value) for value in values)]
            found += [f"{name}: {label} is never {each}" for each in unknown]
        needed = ["job"] if name in WITHOUT_INSTANCE else ["job", "instance"]
        found += [f'{name} lacks {label}=~"${label}"' for label in needed if f'{label}=~"${label}"' not in selector]
    return found


def cells(place):
    return [(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])]

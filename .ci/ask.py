"""Ask a running service on both backends, then ask Prometheus what it saw. Standard library only.

    python3 .ci/ask.py http://127.0.0.1:8000 http://127.0.0.1:9090

Ends with 1 and a sentence at the first thing that is not as promised. The same request on fp32 and int8 must get
the same label and the same answer, every counter must reach Prometheus with its task and backend, and every query
of the Grafana dashboard must be valid and return data.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

DASHBOARDS = Path(__file__).parent.parent / "docker" / "grafana" / "dashboards"
CONTEXT = "The tower was finished in 1889. It was designed by the engineers of Gustave Eiffel's company in Paris."
REQUESTS: dict[str, Any] = {
    "classify": {"inputs": ["A warm, funny and beautifully acted film.", "Dull from the first minute to the last."]},
    "qa": {"inputs": {"question": "When was the tower finished?", "context": CONTEXT}},
}
BACKENDS = ("fp32", "int8")
OF_A_CASCADE = "q8bert_escalations_total"
"""The metric that a service has only with a file of thresholds (`--cascade`), which the compose file has none of."""
PATIENCE_S = 60.0

# No proxy of the environment: both addresses are on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def call(url: str, body: Any = None) -> tuple[Any, dict[str, str]]:
    """GET, or POST with a JSON body; return the JSON answer and the headers in lower case."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"} if data else {})
    try:
        with _opener.open(request, timeout=60) as response:
            return json.load(response), {name.lower(): value for name, value in response.headers.items()}
    except urllib.error.HTTPError as error:
        sys.exit(f"{url} answered {error.code}: {error.read(2000).decode(errors='replace')}")
    except urllib.error.URLError as error:
        sys.exit(f"{url} does not answer: {error.reason}")


def ask_service(service: str) -> None:
    """Send each request to each backend and check shape, backend and agreement of the answers."""
    for task, request in REQUESTS.items():
        verdicts: dict[str, Any] = {}
        for backend in BACKENDS:
            answer, headers = call(f"{service}/{task}", {**request, "backend": backend})
            served_by = headers.get("x-q8bert-backend")
            if served_by != backend:
                sys.exit(f"/{task} on {backend} was answered by {served_by}")
            print(f"/{task} {backend}: {json.dumps(answer)}")
            if task == "qa":
                if CONTEXT[answer["start"] : answer["end"]] != answer["answer"]:
                    sys.exit(f"/qa on {backend}: offsets {answer['start']}..{answer['end']} are not the answer's")
                verdicts[backend] = answer["answer"]
            else:
                verdicts[backend] = [scores[0]["label"] for scores in answer]
        if verdicts["fp32"] != verdicts["int8"]:
            sys.exit(f"/{task}: fp32 says {verdicts['fp32']}, int8 says {verdicts['int8']}")
        compare(service, task, request)


def compare(service: str, task: str, request: Any) -> None:
    """Ask both backends in one request; they must agree as they do one by one."""
    first = request["inputs"][0] if isinstance(request["inputs"], list) else request["inputs"]
    answer, _ = call(f"{service}/compare", {"inputs": first})
    if (answer["task"], answer["agree"], set(answer["results"])) != (task, True, set(BACKENDS)):
        sys.exit(f"/compare says {json.dumps(answer)}")
    print(f"/compare {task}: agree, delta {answer['delta']}, speedup {answer['speedup']}")


def query(prometheus: str, expression: str) -> list[dict[str, Any]]:
    """Evaluate a PromQL expression now."""
    answer, _ = call(f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": expression}))
    return answer["data"]["result"]


def wait_for(what: str, prometheus: str, expression: str, wanted: set[tuple[str, ...]], *labels: str) -> None:
    """Poll until the expression has a series for each wanted combination of labels."""
    end = time.monotonic() + PATIENCE_S
    while True:
        seen = {tuple(series["metric"].get(label, "") for label in labels) for series in query(prometheus, expression)}
        if wanted <= seen:
            return
        if time.monotonic() > end:
            sys.exit(f"Prometheus does not have {what} after {PATIENCE_S:.0f} s: missing {sorted(wanted - seen)}")
        time.sleep(1)


def dashboard_queries() -> dict[str, str]:
    """Every panel's query, with Grafana's variables filled in as Grafana would."""
    queries: dict[str, str] = {}
    for path in sorted(DASHBOARDS.glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                name = f"{path.stem} / {panel['title']} / {target['refId']}"
                queries[name] = (
                    target["expr"].replace("$__rate_interval", "1m").replace("$task", ".*").replace("$price", "0.04")
                )
    return queries


def main() -> None:
    """Run all of it."""
    service, prometheus = sys.argv[1:3]
    # Rates need a sample from before the traffic.
    wait_for("a scrape of the service", prometheus, 'up{job="q8bert"} == 1', {("q8bert",)}, "job")
    wait_for("engines", prometheus, "q8bert_engine_up == 1", {(b,) for b in BACKENDS}, "backend")
    ask_service(service)
    everything = {(task, backend) for task in REQUESTS for backend in BACKENDS}
    counted = 'q8bert_requests_total{code="200"} > 0'
    wait_for("requests of both tasks on both backends", prometheus, counted, everything, "task", "backend")
    for series in query(prometheus, counted):
        print("Prometheus: " + json.dumps(series["metric"], sort_keys=True) + " " + series["value"][1])
    queries = dashboard_queries()
    for name, expression in queries.items():
        if not query(prometheus, expression) and OF_A_CASCADE not in expression:
            sys.exit(f"dashboard query without data: {name}: {expression}")
    with_data = sum(OF_A_CASCADE not in expression for expression in queries.values())
    print(f"dashboard: {len(queries)} queries, all valid, {with_data} of them with data")


if __name__ == "__main__":
    main()

"""Lints and renders the Helm chart with Helm's own code, and checks what comes out against Kubernetes' own schemas.

Arguments: the chart, values as JSON, a version of Kubernetes, and where to write the configuration that the first pod gets.
"""

import json
import sys

import kubernetes_validate
import yaml
from helm_python.chart import Chart, lint

WARNING = 2

chart, values, kubernetes, configuration = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
report = lint(chart, values=values, strict=True)
problems = report["errors"] + [message for message in report["messages"] if message["severity"] >= WARNING]
if problems:
    sys.exit(f"helm lint: {problems}")

kinds = []
with Chart.load(chart) as loaded:
    rendered = loaded.render(values=values, name="fleet", namespace="firmware")
for text in rendered.values():
    for document in yaml.safe_load_all(text):
        if document is None:
            continue
        kinds.append(document["kind"])
        # Kubernetes knows no schema of what others define.
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):
            kubernetes_validate.validate(document, kubernetes, strict=True)
        if document["kind"] == "ConfigMap":
            with open(configuration, "w", encoding="utf-8") as file:
                file.write(document["data"]["coordinator.toml"].replace("@POD@", "fleet-coordinator-0"))
print(json.dumps(sorted(kinds)))

"""Renders the chart by Helm's own library and validates what Kubernetes is given.

render.py CHART MANIFEST...: prints what the chart makes of its default values and of all switches; any
document that a schema does not know, or that does not fit it, is an error.
"""

import sys

import helm_python
import kubernetes_validate
import yaml

VERSIONS = ["1.25", "1.30", "1.33"]
# Of operators, whose schemas are not Kubernetes' own.
FOREIGN = {"monitoring.coreos.com/v1"}
SWITCHED_ON = {
    "watchPods": True,
    "privileged": True,
    "serviceMonitor": {"enabled": True},
    "config": {"pod_selector": ["dns-proxy=encrypt"], "route": ["corp.example=original"]},
}


def validate(where, text):
    count = 0
    for document in filter(None, yaml.safe_load_all(text)):
        name = f"{where}: {document['kind']} {document['metadata']['name']}"
        if document["apiVersion"] not in FOREIGN:
            for version in VERSIONS:
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    sys.exit(f"{name}, Kubernetes {version}: {error.message}")
        count += 1
        print(name)
    return count


chart, manifests = sys.argv[1], sys.argv[2:]
for manifest in manifests:
    with open(manifest, encoding="utf-8") as file:
        if not validate(manifest, file.read()):
            sys.exit(f"{manifest} is empty")
for values in ({}, SWITCHED_ON):
    with helm_python.Chart.load(chart) as loaded:
        rendered = loaded.render(values, name="dns", namespace="dns-system")
    documents = sum(validate(path, text) for path, text in sorted(rendered.items()))
    print(f"{documents} documents")
    for text in rendered.values():
        print(text)

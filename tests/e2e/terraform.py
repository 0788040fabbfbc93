"""Whether a Terraform module hands a chart only values that it has, and every variable is declared and used.

python terraform.py MODULE VALUES.YAML
"""

import pathlib
import re
import sys

import hcl2
import yaml

module, values = map(pathlib.Path, sys.argv[1:])
texts = {file.name: file.read_text() for file in sorted(module.glob("*.tf"))}
parsed = {name: hcl2.loads(text) for name, text in texts.items()}


def bare(name):
    return name.strip('"')


declared = {bare(name) for file in parsed.values() for one in file.get("variable", []) for name in one}
used = {name for text in texts.values() for name in re.findall(r"\bvar\.(\w+)", text)}
assert declared == used, f"declared and not used, or the other way round: {sorted(declared ^ used)}"

(handed,) = [one["values"] for file in parsed.values() for one in file.get("locals", []) if "values" in one]


def check(handed, known, place):
    for name, value in handed.items():
        if name.startswith("__"):
            continue
        name = bare(name)
        assert name in known, f"the chart has no {place}{name}"
        if isinstance(value, dict):
            check(value, known[name], f"{place}{name}.")


check(handed, yaml.safe_load(values.read_text()), "")
print(len(declared))

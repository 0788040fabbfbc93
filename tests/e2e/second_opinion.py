"""Downloads targets with python-tuf's client. Arguments: root, metadata URL, targets URL, work folder, target names.

Prints one JSON object: the versions it trusts, and for every target where it stored the verified bytes.
"""

import json
import os
import sys

from tuf.ngclient import Updater

root, metadata_url, targets_url, folder, *names = sys.argv[1:]
metadata, targets = os.path.join(folder, "metadata"), os.path.join(folder, "targets")
os.makedirs(metadata, exist_ok=True)
os.makedirs(targets, exist_ok=True)
with open(root, "rb") as file:
    updater = Updater(metadata, metadata_url, targets, targets_url, bootstrap=file.read())
updater.refresh()
paths = {}
for name in names:
    info = updater.get_targetinfo(name)
    if info is None:
        sys.exit(f"python-tuf finds no target {name}")
    paths[name] = updater.download_target(info)
versions = {}
for name in sorted(os.listdir(metadata)):
    if name.endswith(".json"):
        with open(os.path.join(metadata, name), "rb") as file:
            versions[name.removesuffix(".json")] = json.load(file)["signed"]["version"]
print(json.dumps({"versions": versions, "targets": paths}))

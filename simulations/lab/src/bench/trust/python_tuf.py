"""Verifies one metadata file again and again with python-tuf. Arguments: root, file, role, how often."""

import sys
import time

from tuf.api.metadata import Metadata

with open(sys.argv[1], "rb") as file:
    root = Metadata.from_bytes(file.read()).signed
with open(sys.argv[2], "rb") as file:
    data = file.read()
role, times = sys.argv[3], int(sys.argv[4])


def verify() -> None:
    metadata = Metadata.from_bytes(data)
    root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


verify()
start = time.perf_counter_ns()
for _ in range(times):
    verify()
print(time.perf_counter_ns() - start)

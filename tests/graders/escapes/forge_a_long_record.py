"""Answer past the grader's own end: more printed text, and a deeper one, than is ever kept."""

import json
import os


def attack(sample, item):
    deep = "[" * 900 + "x" * 100_000 + "]" * 900
    os.write(3, json.dumps({"score": 0.0, "printed": deep, "message": deep}).encode())
    os._exit(0)

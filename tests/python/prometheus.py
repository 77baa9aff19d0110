"""Reads metrics files as Prometheus does, with its own client's parser.

Arguments: files. Prints a JSON object for each: its metrics with type and help, and their samples. A second HELP or TYPE for one
metric, and a sample said twice, are errors: node_exporter refuses the whole file for them.
"""

import json
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

for path in sys.argv[1:]:
    text = Path(path).read_bytes().decode()
    assert text.endswith("\n")
    families, samples = {}, []
    for family in text_string_to_metric_families(text):
        assert family.name not in families, family.name
        assert family.samples, family.name
        families[family.name] = [family.type, family.documentation]
        samples += [[sample.name, sample.labels, sample.value] for sample in family.samples]
    keys = [(name, *sorted(labels.items())) for name, labels, _ in samples]
    assert len(set(keys)) == len(keys)
    # Every line of the file was understood.
    assert len(samples) == sum(not line.startswith("#") for line in text.splitlines())
    print(json.dumps({"families": families, "samples": samples}))

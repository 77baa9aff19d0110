"""Runs a snippet of docs/parquet-schema.md from standard input and says what it left in `ids` and `vectors`.

Run in a folder that holds what the snippets name: the table `work/features` and the exported files.
"""

import hashlib
import json
import sys

import numpy as np

names = {}
exec(compile(sys.stdin.read(), "<snippet>", "exec"), names)
vectors = names["vectors"]
print(
    json.dumps(
        {
            "ids": [str(name) for name in names["ids"]],
            "dtype": vectors.dtype.str,
            "shape": vectors.shape,
            "sha256": hashlib.sha256(np.ascontiguousarray(vectors).tobytes()).hexdigest(),
        }
    )
)

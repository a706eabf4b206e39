"""Claims from files: YAML by hand, LiteLLM's model list, a /models answer of OpenAI or Azure, a Markdown page.

    claims = read_claims(text, filename="azure.md", source="https://…/azure.md", catalog=catalog, said_at=now)

What a YAML file holds, a list or a list under `models`; a date may be written as a document writes it:

    - model: gpt-4o
      version: 2024-05-13
      publisher: Azure OpenAI
      retirement_date: No earlier than 2026-03-31
      training_retirement_date: 2025-09-30
      replacement: gpt-5.1
"""

import datetime
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from tunekeeper.errors import InvalidRequest, Unavailable
from tunekeeper.lifecycle.catalog import FIELDS, Catalog, Claim, Origin, page_claims
from tunekeeper.lifecycle.dates import parse_date, read_date
from tunekeeper.lifecycle.retirements import DATE_FIELDS, read_records

_KNOWN = ("model", "version", "publisher", *(field for field in FIELDS if field != "listed"))
_AZURE_STAGE = {"deprecating": "deprecated", "deprecated": "retired", "generallyavailable": "generally-available"}
"""Azure's API says Deprecating where its documents say deprecated, and Deprecated where they say retired."""


def read_claims(text: str, *, filename: str, source: str, catalog: Catalog, said_at: int) -> list[Claim]:
    """The claims in a file, told apart by its name and content; raises InvalidRequest with what is wrong where."""
    name = filename.casefold()
    if name.endswith((".yaml", ".yml")):
        return list(_yaml_claims(text, source, said_at))
    if name.endswith(".json") or text.lstrip()[:1] in ("{", "["):
        return list(_json_claims(text, source, said_at))
    records = read_records(text, filename=source)
    if not records:
        raise InvalidRequest(
            f"{source} has no table of model retirements: none has a column of models and one of dates on which they "
            "are deprecated or retired. Give a Markdown page, YAML (.yaml), LiteLLM's JSON or a /models answer."
        )
    return page_claims(records, catalog, source=source, said_at=said_at)


def _yaml_claims(text: str, source: str, said_at: int) -> Iterator[Claim]:
    try:
        import yaml
    except ImportError as error:
        raise Unavailable("Reading YAML needs PyYAML: pip install 'tunekeeper[insight]'.") from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise InvalidRequest(f"{source} is not valid YAML: {error}. Correct the file.") from error
    if isinstance(root, yaml.MappingNode):
        root = next((value for key, value in root.value if key.value == "models"), root)
    if not isinstance(root, yaml.SequenceNode) or not root.value:
        raise InvalidRequest(f"{source} must hold a list of models, or one under `models`.")
    for node in root.value:
        at = node.start_mark.line + 1
        if not isinstance(node, yaml.MappingNode):
            raise InvalidRequest(f"{source}, line {at}: an entry must be a mapping with `model` and its dates.")
        entry = {key.value: value for key, value in node.value}
        unknown = sorted(set(entry) - set(_KNOWN))
        if unknown or "model" not in entry:
            wrong = f"{unknown[0]!r} is unknown" if unknown else "`model` is missing"
            raise InvalidRequest(f"{source}, line {at}: {wrong}; known are {', '.join(_KNOWN)}.")
        for field, value in entry.items():
            line = value.start_mark.line + 1
            if not isinstance(value, yaml.ScalarNode):
                raise InvalidRequest(f"{source}, line {line}: {field} must be a text or a date.")
            if field in FIELDS:
                names = {name: entry[name].value for name in ("model", "version", "publisher") if name in entry}
                yield _dated(names, field, value.value, "manual", source, said_at, line=line)


def _json_claims(text: str, source: str, said_at: int) -> Iterator[Claim]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidRequest(f"{source} is not valid JSON: {error}.") from error
    if isinstance(value, dict) and value and all(isinstance(entry, dict) for entry in value.values()):
        return _litellm_claims(value, text, source, said_at)
    entries = value.get("data", value.get("value")) if isinstance(value, dict) else value
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InvalidRequest(
            f"{source} is neither LiteLLM's model list (an object by model name) nor a /models answer "
            "(an object with a list under `data` or `value`)."
        )
    return (claim for entry in entries for claim in _model_claims(entry, source, said_at))


def _litellm_claims(models: Mapping[str, Any], text: str, source: str, said_at: int) -> Iterator[Claim]:
    """LiteLLM's `deprecation_date` is the day from which the provider no longer answers."""
    lines: dict[str, int] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if match := re.match(r'\s*"([^"]+)"\s*:', line):
            lines.setdefault(match[1], number)
    for name, entry in models.items():
        provider = str(entry.get("litellm_provider") or "")
        date = entry.get("deprecation_date")
        if name == "sample_spec" or not date:
            continue
        names = {"model": name.removeprefix(f"{provider}/"), "publisher": provider}
        yield _dated(names, "retirement_date", str(date), "litellm", source, said_at, line=lines.get(name))


def _model_claims(entry: Mapping[str, Any], source: str, said_at: int) -> Iterator[Claim]:
    """One model of a /models answer: OpenAI's, Azure's data plane or Azure's control plane."""
    if isinstance(entry.get("model"), dict):
        entry = entry["model"]
    name = entry.get("id") or entry.get("name")
    if not isinstance(name, str):
        raise InvalidRequest(f"{source}: a model has neither `id` nor `name`.")
    names = {
        "model": name,
        "version": str(entry.get("version") or "") if "name" in entry else "",
        "publisher": str(entry.get("publisher") or entry.get("format") or entry.get("owned_by") or ""),
    }

    def claim(field: str, value: object) -> Claim:
        return _dated(names, field, _day(value), "models", source, said_at)

    deprecation = entry.get("deprecation") or {}
    if shutdown := entry.get("shutdown_date") or deprecation.get("inference"):
        yield claim("retirement_date", shutdown)
    if training := deprecation.get("fine_tune") or deprecation.get("fineTune"):
        yield claim("training_retirement_date", training)
    if status := entry.get("lifecycle_status") or entry.get("lifecycleStatus"):
        yield claim("lifecycle_status", _AZURE_STAGE.get(str(status).casefold(), status))
    replacement = entry.get("replacementConfig") or entry.get("replacement") or {}
    if isinstance(replacement, dict) and (target := replacement.get("targetModelName") or replacement.get("model")):
        version = replacement.get("targetModelVersion") or replacement.get("version")
        yield claim("replacement", f"{target} ({version})" if version else target)
        if start := replacement.get("autoUpgradeStartDate") or replacement.get("auto_upgrade_start"):
            yield claim("auto_upgrade_date", start)


def _day(value: object) -> str:
    """A date of an API as text: Unix seconds and timestamps become days, the rest stays."""
    if isinstance(value, int) and not isinstance(value, bool):
        return datetime.datetime.fromtimestamp(value, datetime.UTC).date().isoformat()
    return str(value)


def _dated(
    names: Mapping[str, str],
    field: str,
    text: str,
    origin: Origin,
    source: str,
    said_at: int,
    *,
    line: int | None = None,
) -> Claim:
    date, qualifier = None, None
    if field in DATE_FIELDS:
        reading = read_date(text, about="deprecation" if field == "deprecation_date" else "retirement")
        date, qualifier = reading.date, reading.qualifier
    elif field == "auto_upgrade_date":
        date = parse_date(text)
    return Claim(
        **names,
        field=field,
        text=text,
        date=date.isoformat() if date else None,
        qualifier=qualifier,
        origin=origin,
        source=source,
        line=line,
        said_at=said_at,
    )

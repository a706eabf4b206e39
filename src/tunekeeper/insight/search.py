"""The index of the site's search, which runs in the browser: scripts, for a page on disk may not read files.

    search/documents.js    title, date, category, type and address of each document: a report, or a file in one
    search/terms/N.js      for each term whose first character falls into shard N, the documents that have it
    search/texts/STEM.js   the texts of one report's documents, to check a hit and to show it

The browser loads the shards that a question needs and the texts that it shows. A term is a word in lower case; in
scripts that write without spaces, each pair of neighbouring characters, and the last character of a run alone:
so a question of one character is a prefix too. `search.js` cuts questions in the same way.
"""

import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

from tunekeeper.insight.published import Published, PublishedItem

N_SHARDS = 64

_UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
_RUN = re.compile(rf"[{_UNSPACED}]+|[^\W{_UNSPACED}]+")


def terms(text: str) -> set[str]:
    """What a text can be found by."""
    found: set[str] = set()
    for run in _RUN.findall(normal(text).lower()):
        if re.match(f"[{_UNSPACED}]", run):
            found.update(run[at : at + 2] for at in range(len(run)))
        else:
            found.add(run)
    return found


def normal(text: str) -> str:
    """Full-width and half-width forms made one."""
    return unicodedata.normalize("NFKC", text)


def search_files(reports: Sequence[Published], *, type_names: Mapping[str, str]) -> dict[str, str]:
    """The scripts by their paths on the site; reports and their documents keep their order."""
    documents: list[list[str]] = []
    postings: dict[str, list[int]] = defaultdict(list)
    files: dict[str, str] = {}
    for report in reports:
        texts = []
        for address, title, kind, text in _documents(report, type_names):
            for term in terms(f"{title}\n{text}"):
                postings[term].append(len(documents))
            documents.append([report.stem, address, title, report.day.isoformat(), report.category, kind])
            texts.append(normal(f"{title}\n{text}"))
        first = len(documents) - len(texts)
        files[f"search/texts/{report.stem}.js"] = _call("texts", {str(first + at): t for at, t in enumerate(texts)})
    shards: dict[int, dict[str, list[int]]] = defaultdict(dict)
    for term in sorted(postings):
        shards[ord(term[0]) % N_SHARDS][term] = postings[term]
    for number, shard in shards.items():
        files[f"search/terms/{number}.js"] = _call("terms", number, list(shard.items()))
    files["search/documents.js"] = _call("documents", documents, sorted(shards))
    return files


def _documents(report: Published, type_names: Mapping[str, str]) -> list[tuple[str, str, str, str]]:
    """(address, title, type, text) of the report and of each of its files."""
    points = [point for points in report.highlights.values() for point in points]
    whole = (report.path, report.title, "", "\n".join([report.summary, *points, report.insights]))
    return [whole, *(_document(report, item, type_names) for item in report.items)]


def _document(report: Published, item: PublishedItem, type_names: Mapping[str, str]) -> tuple[str, str, str, str]:
    address = f"{report.path}#{item.anchor}" if item.anchor else report.path
    text = "\n".join([item.filename, item.explanation, " ".join(item.identifiers)])
    return address, item.title or item.filename, type_names.get(item.type, item.type), text


def _call(function: str, *values: object) -> str:
    """A script that hands the values over. `<` is escaped so that no text can end a script element."""
    written = ",".join(json.dumps(value, ensure_ascii=False, separators=(",", ":")) for value in values)
    written = written.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return f"tunekeeperSearch.{function}({written});\n"

"""One file's change in words, from its facts alone: a title, and an explanation that names what is concerned."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from tunekeeper.diffs.patch import parse_patch
from tunekeeper.insight import events
from tunekeeper.insight.catalogue import Catalogue
from tunekeeper.insight.changes import Fact, FactKind
from tunekeeper.insight.classify import ROW_KEY_SEPARATOR, Digest, is_identifier
from tunekeeper.insight.quoting import code, one_line, plain
from tunekeeper.insight.words import bold_terms, edits, first_sentence, literal, quoted, series

MOST_CELLS = 8
MOST_TEXTS = 5
MOST_EDITS = 10
MOST_CHARACTERS_OF_EDIT = 90
_MARKER = re.compile(r"^\s*(?:(?:[-*+>]|\d{1,3}[.)])\s+)+")
MOST_CHARACTERS_OF_CELL = 60
_UNNAMED_COLUMN = re.compile(r"(?:Column (\d+))?")
_ALERT = re.compile(r"\[![A-Za-z]+\]")


def title(item: Digest, words: Catalogue) -> str:
    """What the file's change is, on one line of plain text."""
    return plain(_file_title(item, words) or _content_title(item, words))


def explanation(item: Digest, words: Catalogue) -> tuple[str, ...]:
    """Paragraphs and one list of Markdown; metadata and files without a patch get one line."""
    if item.change.patch is None:
        return (*_without_patch(item, words), *retirement_list(item, words))
    if item.is_metadata_only:
        return (words.say("metadata", items=metadata(item, words)),)
    blocks = [_lead(item, words), *retirement_list(item, words)]
    if lines := list(_lines(item, words)):
        blocks.append("\n".join(f"- {line}" for line in lines))
    return (*blocks, *closing(item, words))


def retirement_list(item: Digest, words: Catalogue) -> tuple[str, ...]:
    """Every retirement event of the file, as one list; nothing where there is none."""
    lines = [events.sentence(group, words) for group in events.groups(item.events)]
    return ("\n".join(f"- {line}" for line in lines),) if lines else ()


def metadata(item: Digest, words: Catalogue) -> str:
    """The metadata that changed, in a row."""
    shown = []
    for fact in item.metadata:
        parts = {"key": code(fact.subject or fact.kind), "old": _value(fact.old), "new": _value(fact.new)}
        if fact.kind != "front_matter_changed":
            shown.append(words.say("formatting"))
        elif fact.old and fact.new:
            shown.append(words.say("metadata_change", **parts))
        else:
            shown.append(words.say("metadata_added" if fact.new else "metadata_removed", **parts))
    return words.series(list(dict.fromkeys(shown)))


def metadata_keys(items: Iterable[Digest], words: Catalogue) -> str:
    """The names of the metadata that changed, in a row."""
    facts = [fact for item in items for fact in item.metadata]
    keys = [code(fact.subject) if fact.kind == "front_matter_changed" else words.say("formatting") for fact in facts]
    return words.series(list(dict.fromkeys(keys)), limit=4)


def basename(path: str) -> str:
    """A path's last part, as code."""
    return code(PurePosixPath(path).name or path)


def row_key(fact: Fact, words: Catalogue) -> str:
    """A row's key, each part as a name or a quotation."""
    return ROW_KEY_SEPARATOR.join(
        literal(part, words) for part in fact.subject.split(ROW_KEY_SEPARATOR) if plain(part)
    ) or literal(fact.new or fact.old, words)


# --- titles ----------------------------------------------------------------------------------------------------------


def _file_title(item: Digest, words: Catalogue) -> str:
    """The title where the whole file, its metadata or a retirement gives it."""
    status, name = item.change.status, basename(item.change.filename)
    if item.events:
        return events.title(events.groups(item.events), words)
    if item.is_image:
        return words.say(f"title_image_{status}" if status in ("added", "removed") else "title_image", name=name)
    if status in ("added", "removed"):
        subject = next((fact.subject for fact in item.of("file_added", "file_removed") if plain(fact.subject)), "")
        shown = quoted(subject, words) if subject and item.is_page else name
        return words.say(f"title_{status}" if item.is_page else f"title_file_{status}", name=shown)
    if status in ("renamed", "copied") and item.change.previous_filename:
        old, new = item.change.previous_filename, item.change.filename
        same = PurePosixPath(old).name == PurePosixPath(new).name
        return words.say("title_renamed", old=code(old) if same else basename(old), new=code(new) if same else name)
    if item.change.patch is None:
        return words.say("title_no_patch", name=name)
    if item.is_metadata_only:
        return words.say("title_metadata", keys=metadata_keys([item], words))
    return ""


def _content_title(item: Digest, words: Catalogue) -> str:
    """The title from the most important thing that changed inside the file."""
    came, went, changed = headings(item)
    if top := [fact for fact in changed if fact.data.get("level") == 1]:
        return words.say("title_page_renamed", new=quoted(top[0].new, words))
    if len(changed) == 1 and not came and not went:
        return words.say("title_heading_changed", old=quoted(changed[0].old, words), new=quoted(changed[0].new, words))
    if (came and went) or changed:
        return words.say("title_headings", added=len(came), removed=len(went), changed=len(changed))
    if came or went:
        names = series((fact.subject for fact in came or went), words, 2)
        return words.say("title_heading_added" if came else "title_heading_removed", names=names)
    rows: tuple[tuple[str, FactKind], ...] = (
        ("title_rows_removed", "table_row_removed"),
        ("title_rows_added", "table_row_added"),
        ("title_cells", "table_cell_changed"),
    )
    for message, kind in rows:
        if facts := item.of(kind):
            return words.say(message, names=_rows(facts, words, 2))
    facts = item.of("code_changed", "code_added", "code_removed")
    if facts and item.is_page:
        found = _identifiers(facts, "identifiers_added") or _identifiers(facts, "identifiers_removed")
        return words.say("title_code_names", names=series(found, words, 3)) if found else words.say("title_code")
    if facts := item.of("text_changed", "text_added", "text_removed"):
        return _text_title(item, facts, words)
    if links := item.of("link_target_changed"):
        return words.say("title_links", n=len(links))
    return words.say("title_other", name=basename(item.change.filename))


def _text_title(item: Digest, facts: Sequence[Fact], words: Catalogue) -> str:
    """A small change as it is, a larger one by its section."""
    if len(facts) <= MOST_TEXTS and facts[0].kind == "text_changed":
        changes = edits(facts[0].old, facts[0].new, words)
        if changes and len(max(changes, key=len)) <= MOST_CHARACTERS_OF_EDIT:
            return words.say("title_text", section=max(changes, key=len))
    if section := next(iter(_sections(item)), ""):
        return words.say("title_text", section=quoted(section, words))
    return words.say("title_text_plain")


# --- explanations ----------------------------------------------------------------------------------------------------


def _without_patch(item: Digest, words: Catalogue) -> tuple[str, ...]:
    change = item.change
    if item.is_image:
        return (words.say("image_listed"),)
    if change.status == "renamed" and not change.changes and change.previous_filename:
        return (words.say("no_patch_renamed", old=code(change.previous_filename), new=code(change.filename)),)
    if change.is_cut or change.changes:
        return (words.say("no_patch_cut", additions=change.additions, deletions=change.deletions),)
    return (words.say("no_patch_binary" if change.is_binary else "no_patch_mode"),)


def _lead(item: Digest, words: Catalogue) -> str:
    change = item.change
    counts = {"additions": change.additions, "deletions": change.deletions}
    if change.status == "added":
        title = next((fact.subject for fact in item.of("file_added") if plain(fact.subject)), "")
        if item.is_page and title:
            return words.say("lead_added_titled", title=quoted(title, words), **counts)
        return words.say("lead_added" if item.is_page else "lead_file_added", **counts)
    if change.status == "removed":
        return words.say("lead_removed" if item.is_page else "lead_file_removed", **counts)
    sentences = [words.say("lead_modified", **counts)]
    if change.status in ("renamed", "copied") and change.previous_filename:
        moved = words.say(f"lead_{change.status}", old=code(change.previous_filename), new=code(change.filename))
        sentences.insert(0, moved)
    sections = _sections(item)
    if sections and not item.of("heading_added", "heading_removed", "heading_changed"):
        sentences.append(words.say("lead_sections", sections=words.series([quoted(s, words) for s in sections], 5)))
    return words.say("sentence_join").join(sentences)


def _sections(item: Digest) -> list[str]:
    """The headings that the changes stand under; what git wrote behind the @@ is often no heading."""
    hunks = parse_patch(item.change.patch or "")
    guesses = {plain(hunk.section) for hunk in hunks if not hunk.section.startswith("#")}
    sections = dict.fromkeys(plain(fact.section) for fact in item.rest)
    return [section for section in sections if section and section not in guesses]


def _lines(item: Digest, words: Catalogue) -> Iterable[str]:
    """A line for each group of facts, in the order in which a reader wants them."""
    if item.change.status == "removed":
        if headings := item.of("heading_removed"):
            yield words.say("headings_of_page", items=series((fact.old for fact in headings), words, 12))
        return
    yield from _front_matter(item, words)
    yield from _headings(item, words)
    yield from _tables(item, words)
    yield from _code(item, words)
    yield from _references(item, words)
    yield from _image_texts(item, words)
    yield from _texts(item, words)


def _front_matter(item: Digest, words: Catalogue) -> Iterable[str]:
    for fact in item.of("front_matter_changed"):
        values = (value.strip("\"'") for value in (fact.old, fact.new))
        old, new = (literal(value, words) if value else words.say("unstated") for value in values)
        yield words.say("front_matter_changed", key=code(fact.subject), old=old, new=new)


def headings(item: Digest) -> tuple[tuple[Fact, ...], tuple[Fact, ...], tuple[Fact, ...]]:
    """The headings that came, that went, and that got other words; not those that only moved."""
    came, went = item.of("heading_added"), item.of("heading_removed")
    both = {plain(fact.new) for fact in came} & {plain(fact.old) for fact in went}
    return (
        tuple(fact for fact in came if plain(fact.new) not in both),
        tuple(fact for fact in went if plain(fact.old) not in both),
        tuple(fact for fact in item.of("heading_changed") if plain(fact.old) != plain(fact.new)),
    )


def _headings(item: Digest, words: Catalogue) -> Iterable[str]:
    came, went, changed = headings(item)
    for fact in changed:
        yield words.say("heading_changed", old=quoted(fact.old, words), new=quoted(fact.new, words))
    if item.change.status == "added":
        # The first is the page's title, which was said.
        names = [quoted(fact.new, words) for fact in item.of("heading_added") if fact.data.get("level") != 1]
        if names:
            yield words.say("headings_of_page", items=words.series(names, 12))
        return
    for message, facts in (("headings_added", came), ("headings_removed", went)):
        if facts:
            names = [quoted(fact.subject, words) for fact in facts]
            yield words.say(message, n=len(facts), items=words.series(names, 12))
    told = {id(fact) for fact in (*came, *went, *changed)}
    every = item.of("heading_added", "heading_removed", "heading_changed")
    if moved := list(dict.fromkeys(quoted(fact.subject, words) for fact in every if id(fact) not in told)):
        yield words.say("heading_moved", items=words.series(moved, 12))


def _tables(item: Digest, words: Catalogue) -> Iterable[str]:
    rows: tuple[tuple[str, FactKind], ...] = (
        ("rows_removed", "table_row_removed"),
        ("rows_added", "table_row_added"),
        ("rows_moved", "table_row_moved"),
    )
    for message, kind in rows:
        if facts := item.of(kind):
            yield words.say(message, n=len(facts), items=_rows(facts, words, 12))
    cells = item.of("table_cell_changed")
    for fact in cells[:MOST_CELLS]:
        yield _cell(fact, words)
    if len(cells) > MOST_CELLS:
        yield words.say("cells_more", n=len(cells) - MOST_CELLS)
    columns: tuple[tuple[str, FactKind], ...] = (
        ("columns_removed", "table_column_removed"),
        ("columns_added", "table_column_added"),
    )
    for message, kind in columns:
        if names := series((fact.part or fact.subject for fact in item.of(kind)), words):
            yield words.say(message, items=names)


def _cell(fact: Fact, words: Catalogue) -> str:
    row, number = row_key(fact, words), _UNNAMED_COLUMN.fullmatch(fact.part)
    column = words.say("column_number", number=number[1] or "?") if number else quoted(fact.part, words)
    is_long = min(len(plain(fact.old)), len(plain(fact.new))) > MOST_CHARACTERS_OF_CELL
    if is_long and (changes := edits(fact.old, fact.new, words)):
        return words.say("cell_edited", row=row, column=column, items=words.series(changes, MOST_TEXTS))
    old, new = (literal(value, words) if plain(value) else words.say("unstated") for value in (fact.old, fact.new))
    return words.say("cell_changed", row=row, column=column, old=old, new=new)


def _code(item: Digest, words: Catalogue) -> Iterable[str]:
    facts = item.of("code_added", "code_removed", "code_changed")
    came, went = _identifiers(facts, "identifiers_added"), _identifiers(facts, "identifiers_removed")
    prefix = "code_" if item.is_page else ""
    if came:
        yield words.say(f"{prefix}names_added", items=words.series([code(name) for name in came], 12))
    if went:
        yield words.say(f"{prefix}names_removed", items=words.series([code(name) for name in went], 12))
    if not came and not went:
        kinds: tuple[FactKind, ...] = ("code_added", "code_removed", "code_changed")
        for kind in kinds:
            if same := item.of(kind):
                yield words.say(kind, n=len(same))


def _references(item: Digest, words: Catalogue) -> Iterable[str]:
    if moved := item.of("link_target_changed"):
        pairs = [words.say("text_replaced", old=code(fact.old), new=code(fact.new)) for fact in moved]
        yield words.say("link_target_changed", items=words.series(list(dict.fromkeys(pairs))))
    groups: tuple[tuple[str, FactKind], ...] = (
        ("links_added", "link_added"),
        ("links_removed", "link_removed"),
        ("images_added", "image_added"),
        ("images_removed", "image_removed"),
        ("images_changed", "image_changed"),
        ("includes_added", "include_added"),
        ("includes_removed", "include_removed"),
        ("tabs_added", "tab_added"),
        ("tabs_removed", "tab_removed"),
    )
    for message, kind in groups:
        if facts := item.of(kind):
            facts = tuple(fact for fact in facts if fact.part != "text" or not kind.startswith("image_"))
            # A tab has a name, the others a target.
            shown = [quoted(f.subject, words) if kind.startswith("tab_") else code(f.new or f.old) for f in facts]
            names = list(dict.fromkeys(name for name in shown if name))
            if names:
                yield words.say(message, n=len(facts), items=words.series(names))


def _image_texts(item: Digest, words: Catalogue) -> Iterable[str]:
    pairs = [(quoted(f.old, words), quoted(f.new, words)) for f in item.of("image_changed") if f.part == "text"]
    if pairs:
        shown = [words.say("text_replaced", old=old, new=new) for old, new in pairs]
        yield words.say("image_texts_changed", items=words.series(shown))


def _texts(item: Digest, words: Catalogue) -> Iterable[str]:
    sides: tuple[tuple[str, str, FactKind], ...] = (
        ("terms_added", "text_added", "text_added"),
        ("terms_removed", "text_removed", "text_removed"),
    )
    for terms_message, message, kind in sides:
        texts = [fact.new or fact.old for fact in item.of(kind)]
        lines = [line for text in texts for line in text.split("\n")]
        if terms := bold_terms(lines):
            yield words.say(terms_message, items=words.series([quoted(term, words) for term in terms], 12))
        if first := list(dict.fromkeys(s for text in texts if len(s := _first_line(text)) > 1)):
            yield words.say(message, items=words.series([quoted(text, words) for text in first], MOST_TEXTS))
    changed = item.of("text_changed")
    shown = [edit for fact in changed[:MOST_TEXTS] for edit in edits(fact.old, fact.new, words)]
    if shown:
        yield words.say("texts_changed", items=words.series(list(dict.fromkeys(shown)), MOST_EDITS))
    if len(changed) > MOST_TEXTS or (changed and not shown):
        yield words.say("texts_changed_more", n=len(changed))


def closing(item: Digest, words: Catalogue) -> Iterable[str]:
    """What is said last about a file: that its metadata changed too, that its patch is cut."""
    if item.metadata and item.change.status not in ("added", "removed"):
        yield words.say("metadata_too", items=metadata(item, words))
    if item.change.is_cut:
        yield words.say("patch_cut")


def _rows(facts: Sequence[Fact], words: Catalogue, limit: int) -> str:
    return words.series(list(dict.fromkeys(row_key(fact, words) for fact in facts)), limit)


def _identifiers(facts: Iterable[Fact], key: str) -> tuple[str, ...]:
    names = (str(name) for fact in facts for name in fact.data.get(key, ()))
    return tuple(name for name in dict.fromkeys(names) if is_identifier(name))


def _first_line(text: str) -> str:
    bare = (_MARKER.sub("", line) for line in text.split("\n"))
    return next((first_sentence(line) for line in bare if plain(line) and not _ALERT.fullmatch(line.strip())), "")


def _value(text: str) -> str:
    return code(one_line(text)[:60])

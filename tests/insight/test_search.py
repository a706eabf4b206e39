import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from published_reports import publish
from tunekeeper.insight import search
from tunekeeper.insight.published import read_reports
from tunekeeper.insight.search import N_SHARDS, search_files, terms

JAPANESE = st.text("提供終了日のモデルがあります々ー", min_size=1, max_size=12)


def calls(script: str) -> list[object]:
    """The values that a script of the index hands over."""
    match = re.fullmatch(r"tunekeeperSearch\.\w+\((.*)\);\n", script, re.DOTALL)
    assert match
    return list(json.loads(f"[{match[1]}]"))


def test_words_are_terms_and_neighbouring_characters_of_unspaced_scripts_are() -> None:
    assert terms("GPT-4o の引退日") == {"gpt", "4o", "の引", "引退", "退日", "日"}
    assert terms("ＧＰＴ　ﾓﾃﾞﾙ") == {"gpt", "モデ", "デル", "ル"}


@settings(deadline=None)
@given(before=JAPANESE, question=JAPANESE, after=JAPANESE)
def test_each_part_of_a_text_is_found_by_its_pairs(before: str, question: str, after: str) -> None:
    known = terms(before + question + after)
    if len(question) == 1:
        assert any(term.startswith(question) for term in known)
    else:
        assert {question[at : at + 2] for at in range(len(question) - 1)} <= known


def test_the_index_leads_from_a_term_to_the_document_and_its_text(tmp_path: Path) -> None:
    publish(tmp_path)
    reports, _ = read_reports(tmp_path)
    files = search_files(reports, type_names={"breaking change": "破壊的変更"})
    documents, shards = calls(files["search/documents.js"])
    number = ord("g") % N_SHARDS
    assert number in shards
    _, pairs = calls(files[f"search/terms/{number}.js"])
    assert dict(pairs)["gpt"] == [0, 2]
    stem, address, title, day, category, kind = documents[2]
    assert address == "2025/06/diff-insight-report-openai-2025-06-12.html#item-03fc2e"
    assert (title, day, category, kind) == ("gpt-4 の提供終了日を 16 日前倒し", "2025-06-12", "openai", "破壊的変更")
    (texts,) = calls(files[f"search/texts/{stem}.js"])
    assert "gpt-4.1-mini" in texts["2"]


def test_no_text_ends_the_script_that_holds_it(tmp_path: Path) -> None:
    path = publish(tmp_path)
    path.write_text(path.read_text("utf-8").replace("呼び出し方", "</script><script>x\u2028"), "utf-8")
    reports, _ = read_reports(tmp_path)
    scripts = search_files(reports, type_names={}).values()
    assert not any("<" in script or "\u2028" in script for script in scripts)
    assert any("</script><script>x" in str(calls(script)) for script in scripts)


QUESTIONS = [
    "GPT-4o の引退日",
    "退",
    "ＡＢＣ ｶﾀｶﾅ",
    "computer-use-preview",
    "日本語とEnglishの混在 v1.2_3",
    "々〇ー",
    "é",
]


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_browser_cuts_questions_as_the_index_cuts_texts() -> None:
    script = (Path(search.__file__).with_name("pages") / "search.js").read_text("utf-8")
    ask = f"console.log(JSON.stringify({json.dumps(QUESTIONS)}.map((q) => termsOf(q).map((term) => term[0]))));"
    answer = subprocess.run(["node", "-e", f"{script}\n{ask}"], capture_output=True, check=True, timeout=60).stdout
    for question, found in zip(QUESTIONS, json.loads(answer), strict=True):
        runs = re.findall(r"[\u3005-\u9fff]{2,}", search.normal(question))
        assert set(found) == terms(question) - {run[-1] for run in runs}

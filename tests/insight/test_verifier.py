import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from documents import digests
from tunekeeper.insight.catalogue import catalogue
from tunekeeper.insight.verifier import Evidence, Form, check, gather, merge, stands_in

DAY = digests()
KNOWN = gather([DAY["docs/retirements.md"]])


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    return gather([DAY["docs/retirements.md"], DAY["docs/guide.md"], DAY["docs/errors.md"]])


def faults(text: str, evidence: Evidence, language: str = "ja", form: Form = "paragraph") -> list[str]:
    return check(text, evidence, catalogue(language).lexicon, form=form, language=language)


TRUE_JA = [
    "`screen-use-preview` の提供終了日が2025年6月11日から2025年9月1日に変わり、82日後ろ倒しされました。",
    "`screen-use-preview` の提供終了日は八十二日後ろ倒しされ、令和7年9月1日以降になりました。",
    "`old-turbo` の提供終了日は２０２５年１２月１日から２０２５年１１月１５日へ、16 日前倒しされました。",
    "`screen-use-preview` (バージョン 2025-03-11) の期日は延長され、`old-turbo` の期日は前倒しされました。",
    "提供終了日が「No earlier than June 11, 2025」から「No earlier than September 1, 2025」に改められました。",
    "ページの `ms.date` は 04/23/2025 から 06/11/2025 に変わりました。",
    "上限は 5万 行から 12万 トークンになり、`max_rows` の代わりに `max_tokens` が使われます。",
    "`max_tokens` が追加され、`max_rows` が削除されました。",
    "削除された `max_rows` の代わりに `max_tokens` が追加されました。",
    "「Key benefits」の節が加わり、見出しは「Tuning considerations」になりました。",
    "1 件のモデルについて、提供終了日が改められています。",
]
TRUE_EN = [
    "The retirement date of `screen-use-preview` moved from June 11, 2025 to September 1, 2025, 82 days later.",
    "The date of `screen-use-preview` was extended, while that of `old-turbo` was brought forward.",
    "The guide now allows 120K tokens, up from a limit of 50 thousand rows.",
    "The page adds `max_tokens` and removes `max_rows`.",
    "The date of `old-turbo` is brought forward by sixteen days, to 15 November 2025.",
    "`draw-3` still retires on June 30, 2026.",
]


@pytest.mark.parametrize("text", TRUE_JA)
def test_true_japanese_passes(text: str, evidence: Evidence) -> None:
    assert faults(text, evidence) == []


@pytest.mark.parametrize("text", TRUE_EN)
def test_true_english_passes(text: str, evidence: Evidence) -> None:
    assert faults(text, evidence, "en") == []


@pytest.mark.parametrize(
    "text",
    [
        # the wrong date, in every form
        "`screen-use-preview` の提供終了日は2026年9月1日です。",
        "`screen-use-preview` の提供終了日は2025年1月9日です。",
        "`screen-use-preview` の提供終了日は令和8年9月1日です。",
        "`screen-use-preview` の提供終了日は二〇二六年九月一日です。",
        "`screen-use-preview` の提供終了日は２０２６年９月１日です。",
        "`screen-use-preview` の提供終了日は R8.9.1 です。",
        "`screen-use-preview` の提供終了日は 2026-09-01 です。",
        "`screen-use-preview` の提供終了日は `2026-09-01` です。",
        "`screen-use-preview` の提供終了日は 09/02/2025 です。",
        "`screen-use-preview` の提供終了日は2026年9月です。",
        "`screen-use-preview` の提供終了は2026年です。",
        "`screen-use-preview` の提供終了日は10月1日です。",
        "`screen-use-preview` の提供終了日は2025年9月末です。",
        "`screen-use-preview` の提供終了日は2025年9月1日 (火) です。",
        "`screen-use-preview` の提供終了日は来月です。",
        # another thing's date
        "`screen-use-preview` の提供終了日は2025年11月15日です。",
        "`screen-use-preview` の提供終了日は2025年3月11日です。",
        "`screen-use-preview` の提供終了日は `2025-03-11` です。",
        "提供終了日は2025年4月23日です。",
        "`old-turbo` の提供終了日は2025年9月1日で、`screen-use-preview` は2025年11月15日です。",
        # the wrong way
        "`screen-use-preview` の提供終了日は2025年9月1日から2025年6月11日に変わりました。",
        "`screen-use-preview` の提供終了日が前倒しされました。",
        "`old-turbo` の期日は延長されました。",
        "`screen-use-preview` の期日は前倒しされ、`old-turbo` の期日は延長されました。",
        "期日が前倒しされました。",
        "`max_rows` が追加され、`max_tokens` が削除されました。",
        "新しい設定 `max_tokens` は削除されました。",
        "`screen-use-preview` は提供を終了しました。",
        # the wrong number
        "`screen-use-preview` の期日は28日後ろ倒しされました。",
        "`screen-use-preview` の期日は16日後ろ倒しされました。",
        "`screen-use-preview` の期日は82か月後ろ倒しされました。",
        "上限は 21万 トークンです。",
        "上限は 1.2億 トークンです。",
        "上限は 十三万 トークンです。",
        "費用は82%減りました。",
        "上限は2倍になりました。",
        "モデルが九百件あります。",
        # invented names
        "`--force` を使います。",
        "設定 max_retries が加わりました。",
        "`gpt-9` が加わりました。",
        "`old` が加わりました。",
        "後継は gpt-9o です。",
        "バージョン 0163 の `old-turbo` が対象です。",
        "Claude の説明が加わりました。",
        "詳細は https://example.com/x にあります。",
        "「Completely new heading」が加わりました。",
        "ファイル docs/other.md も変わりました。",
    ],
)
def test_false_japanese_is_found(text: str, evidence: Evidence) -> None:
    assert faults(text, evidence)


@pytest.mark.parametrize(
    "text",
    [
        "The date of `screen-use-preview` moved to September 1, 2026.",
        "The date of `screen-use-preview` moved to 1 October 2025.",
        "The date of `screen-use-preview` is Tuesday, September 1, 2025.",
        "The date of `screen-use-preview` is in early September 2025.",
        "The date of `screen-use-preview` moved from September 1, 2025 to June 11, 2025.",
        "The date of `screen-use-preview` was brought forward.",
        "The change extends the date of `old-turbo`.",
        "The date of `screen-use-preview` is 28 days later.",
        "The date of `screen-use-preview` is twenty-eight days later.",
        "The date of `screen-use-preview` was brought forward, while that of `old-turbo` was extended.",
        "The page removes `max_tokens` and adds `max_rows`.",
        "The setting `max_rows` was added to the page.",
        "The limit is now 210,000 tokens.",
        "The limit is now 120 million tokens.",
        "The limit is doubled to 120,000 tokens.",
        "The page describes the Anthropic models now.",
        "In the table, Claude is the replacement.",
        "The flag --force is described.",
        "The replacement of `old-turbo` is gpt-9.",
        "The model `screen-use-preview` has been retired.",
        "The date moved to the next month.",
        "It says “retire at once” of the model.",
    ],
)
def test_false_english_is_found(text: str, evidence: Evidence) -> None:
    assert faults(text, evidence, "en")


@pytest.mark.parametrize(
    "text",
    [
        "<think>考えます。</think>変更です。",
        "変更です。</details>",
        "{{ title }} の変更です。",
        "{% if x %} の変更です。",
        "[INST] 変更です。",
        "<|im_start|> 変更です。",
        "```\n変更です。\n```",
        "# 見出し\n変更です。",
        "変更です。\n---\n終わりです。",
        "- 変更です。",
        "[変更](limits.md)です。",
        "説明: 変更です。",
        "この変更は重要であり、",
        "この変更は",
        "この変更は「見出し。",
        "この変更は `max_tokens です。",
        "変更について...",
        "",
        "这是一个新的变更。",
        "이것은 변경입니다.",
        "The heading was changed.",
        "Это изменение.",
        "破壊的変更はありません。",
        "変更\u202eです。",
    ],
)
def test_prose_that_is_no_whole_japanese_prose_is_found(text: str, evidence: Evidence) -> None:
    assert faults(text, evidence)


@pytest.mark.parametrize(
    "text",
    [
        "The heading was changed to",
        "The heading was changed and the",
        "Das Kapitel wurde neu geschrieben und die Zahlen wurden erneuert.",
        "見出しが変わりました。",
        "There are no breaking changes.",
    ],
)
def test_prose_that_is_no_whole_english_prose_is_found(text: str, evidence: Evidence) -> None:
    assert faults(text, evidence, "en")


@pytest.mark.parametrize("text", ["見出しの変更を", "見出しの変更、", "変更\n追加", "`gpt-9` の追加", "見出しと"])
def test_lines_are_whole_too(text: str, evidence: Evidence) -> None:
    assert faults(text, evidence, form="line")


def test_a_line_needs_no_full_stop(evidence: Evidence) -> None:
    assert faults("見出しの変更", evidence, form="title") == []


def test_a_file_without_retirements_is_not_said_to_be_about_them() -> None:
    item = gather([DAY["docs/errors.md"]])
    assert faults("モデルの提供終了日の更新", item, form="title")
    assert faults("綴りの修正", item, form="title") == []


def test_a_name_that_is_part_of_a_longer_one_is_not_in_the_text() -> None:
    assert not stands_in("gpt-4", "use gpt-4-32k, gpt-4o and my-gpt-4")
    assert stands_in("gpt-4", "use gpt-4.")
    assert stands_in("--wait", "with `--wait`.")


def test_evidence_of_files_together_is_that_of_each() -> None:
    items = [DAY["docs/retirements.md"], DAY["docs/guide.md"]]
    together = merge([gather([item]) for item in items], items, today="2025-06-12")
    assert faults("報告日は2025年6月12日です。", together) == []
    for text in TRUE_JA:
        assert faults(text, together) == [], text


@settings(deadline=None)
@given(st.dates().filter(lambda day: day.year > 1999))
def test_only_dates_of_the_diff_pass(day: object) -> None:
    text = f"`screen-use-preview` の期日は {day} です。"
    assert (faults(text, KNOWN) == []) == (str(day) in ("2025-06-11", "2025-09-01"))


@settings(deadline=None)
@given(st.text(st.sampled_from("a1 `<>{}[]()「」。、.年月日2-_/#の\n"), max_size=60))
def test_any_text_can_be_checked(text: str) -> None:
    faults(text, KNOWN)

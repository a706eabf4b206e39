"""Published reports for the tests of site, feeds and notices, in the published format."""

from pathlib import Path

REPORT = """---
date: '{day}'
permalink: https://github.com/example/docs/compare/example:776cc95...example:da65020
summary: {summary}
title: Diff Insight Report - {category}

---

[View Diff on GitHub](https://github.com/example/docs/compare/example:776cc95...example:da65020){{target="_blank"}}

出典: example/docs (ライセンス: CC BY 4.0)

# Highlights

## New features
- 新しいページ: `tools.md`

## Breaking changes
- `gpt-4` の提供終了日が早まりました。

## Other updates
- 見出しの整理。

# Insights

モデルの提供終了日が**早まりました**。[一覧](../retirements.md)を参照。

# Summary Table
|  Filename  | Type |    Title    | Status | A  | D  | M  |
|------------|------|-------------|--------|----|----|----|
| [tools.md](#item-71d8ac) | minor update | 道具の説明の更新 | modified | 1 | 1 | 2 |
| [retirements.md](#item-03fc2e) | breaking change | gpt-4 の提供終了日を 16 日前倒し | modified | 2 | 2 | 4 |


# Modified Contents
## docs/tools.md{{#item-71d8ac}}

<details>
<summary>Diff</summary>
````diff
@@ -1,3 +1,3 @@
 # Tools
-Call it with --old-flag.
+Call it with --new-flag <b>now</b>.
 ```
````
</details>

### Summary

```json
{{
    "modification_type": "minor update",
    "modification_title": "道具の説明の更新"
}}
```

### Explanation
{explanation}

## docs/retirements.md{{#item-03fc2e}}

<details>
<summary>Diff</summary>

````diff
@@ -5,1 +5,1 @@
-| `gpt-4` | August 1, 2025 |
+| `gpt-4` | July 16, 2025 | gpt-4.1-mini |
````

</details>

### Summary

```json
{{
    "modification_type": "breaking change",
    "modification_title": "gpt-4 の提供終了日を 16 日前倒し"
}}
```

### Explanation
`gpt-4` の提供終了日は2025年7月16日です。
"""


def report(
    day: str = "2025-06-12",
    category: str = "openai",
    summary: str = "モデルの提供終了日が早まりました。",
    explanation: str = "呼び出し方の説明が変わりました。",
) -> str:
    """The text of one report."""
    return REPORT.format(day=day, category=category, summary=summary, explanation=explanation)


def publish(directory: Path, text: str | None = None, *, day: str = "2025-06-12", category: str = "openai") -> Path:
    """Put one report where it belongs; return its path."""
    path = directory / day[:4] / day[5:7] / f"diff-insight-report-{category}-{day}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report(day, category) if text is None else text, "utf-8")
    return path

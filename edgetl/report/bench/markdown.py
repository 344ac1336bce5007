"""Markdown version of the benchmark report: sentences and the table of all rows."""

from __future__ import annotations

from collections.abc import Sequence

from edgetl.core.artifacts.bench import BenchResult
from edgetl.report.bench.summary import caveat_sentences, page_title, summary_sentence
from edgetl.report.bench.table import result_tables
from edgetl.report.text_table import escape_markdown, render_markdown_table


def render_bench_markdown(results: Sequence[BenchResult]) -> str:
    """Render the summary and the table of all results, without drawings."""
    bullets = [
        bullet
        for result in results
        for bullet in (
            f"- {escape_markdown(summary_sentence(result))}",
            *(f"  - {escape_markdown(sentence)}" for sentence in caveat_sentences(result)),
        )
    ]
    title, lead = page_title(results)
    blocks = [
        f"# {escape_markdown(title)}",
        escape_markdown(lead),
        "\n".join(bullets),
        *map(render_markdown_table, result_tables(results)),
    ]
    return "\n\n".join(blocks) + "\n"

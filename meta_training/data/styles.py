"""Questions with answers in a voice: chit-chat in several personalities, FAQs, instructions.

Knows the originals' columns and keys; knows nothing about repeats or writing (``convert.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from meta_training.data.intents import read_json, read_json_lines, read_table
from meta_training.data.markup import sample
from meta_training.data.rows import Row
from meta_training.data.text import clean, decode

STYLES_EN = ("professional", "friendly", "witty", "caring")
STYLES_ES = (*STYLES_EN, "enthusiastic")
SPANISH_PER_GROUP = 40
PERSONALITIES = ("professional", "friendly", "humorous")


def chitchat_en(root: Path) -> Iterator[Row]:
    """QnA Maker chit-chat: one table a personality; a query with its answer in all four."""
    for rows in _chitchat(root, STYLES_EN, "en"):
        yield from rows


def chitchat_es(root: Path) -> Iterator[Row]:
    """The same in Spanish with five personalities, at most 40 queries a set of answers."""
    for rows in _chitchat(root, STYLES_ES, "es"):
        yield from sample(rows, SPANISH_PER_GROUP, "query")


def _chitchat(root: Path, styles: tuple[str, ...], language: str) -> list[list[Row]]:
    """Group the queries that all personalities answer by their answers."""
    answers = {style: _answers(root, style) for style in styles}
    groups: dict[tuple[str, ...], list[Row]] = {}
    for query in answers[styles[0]]:
        if not all(query in table for table in answers.values()):
            continue
        responses = {style: answers[style][query] for style in styles}
        rows = groups.setdefault(tuple(responses.values()), [])
        group = rows[0]["group"] if rows else len(groups) - 1
        rows.append({"query": query, "lang": language, "responses": responses, "group": group})
    return list(groups.values())


def _answers(root: Path, style: str) -> Mapping[str, str]:
    (path,) = root.glob(f"qna_chitchat_{style}.*")
    # One of the files is called .csv and is tab-separated all the same.
    delimiter = "\t" if "\t" in decode(path.read_bytes()).split("\n", 1)[0] else ","
    table: dict[str, str] = {}
    for record in read_table(path, delimiter):
        query, answer = clean(record["Question"]), clean(record["Answer"])
        if query and answer:
            table.setdefault(query, answer)
    return table


def personality_chat(root: Path) -> Iterator[Row]:
    """BotBuilder-PersonalityChat: queries with an answer, then further answers of each scenario."""
    folder = root / "CSharp/Datasets"
    for style in PERSONALITIES:
        name = style.capitalize()
        for record in read_table(folder / f"Queries_Responses_{name}_QnAMaker.tsv", "\t"):
            scenario = record["Metadata"].removeprefix("Scenario:")
            yield _reply(record["Question"], scenario, style, record["Answer"], "query")
        for record in read_table(folder / f"Scenario_Responses_{name}.tsv", "\t"):
            yield _reply(None, record["Scenario"], style, record["Response"], "variant")


def _reply(query: str | None, scenario: str, style: str, response: str, kind: str) -> Row:
    return {
        "query": None if query is None else clean(query),
        "scenario": clean(scenario),
        "style": style,
        "response": clean(response),
        "kind": kind,
    }


def dstc9(root: Path) -> Iterator[Row]:
    """DSTC9 track 1: ``{domain: {entity: {"name", "docs": {n: {"title", "body"}}}}}``.

    Entries that the first release had are train, those added for the evaluation test.
    """
    first = read_json(root / "data/knowledge.json")
    for domain, entities in read_json(root / "data_eval/knowledge.json").items():
        for entity, record in entities.items():
            known = first.get(domain, {}).get(entity, {}).get("docs", {})
            for number, entry in record["docs"].items():
                yield {
                    "id": f"dstc9-{domain}-{entity}-{number}",
                    "domain": domain,
                    "entity": clean(record["name"]) if record["name"] else None,
                    "question": clean(entry["title"]),
                    "answer": clean(entry["body"]),
                    "split": "train" if number in known else "test",
                }


def self_instruct(root: Path) -> Iterator[Row]:
    """Self-Instruct's hand-written tasks, the first instance of each; layout is kept."""
    parts = (
        ("seed_tasks", root / "data/seed_tasks.jsonl"),
        ("user_oriented", root / "human_eval/user_oriented_instructions.jsonl"),
    )
    for source, path in parts:
        for record in read_json_lines(path):
            instance = record["instances"][0]
            yield {
                "id": record["id"],
                "instruction": clean(record["instruction"], keep_layout=True),
                "input": clean(instance["input"], keep_layout=True),
                "output": clean(instance["output"], keep_layout=True),
                "is_classification": record.get("is_classification"),
                "source": source,
            }

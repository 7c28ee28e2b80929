"""Small hand-written files of the originals' form, and local repositories of them.

No line is taken from an original. Keys are repositories as in ``sources.yaml``; values are the
files of one: text, bytes, or an object that becomes JSON. ``Zipped`` becomes a zip of one JSON.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meta_training.data.sources import Source, load_sources


@dataclass(frozen=True)
class Zipped:
    """A JSON file that its repository keeps as a zip."""

    contents: Any


def lines(*records: Mapping[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def tabs(*rows: Sequence[str]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


def _multidogo(rows: Sequence[tuple[str, str]]) -> str:
    head = "conversationId turnNumber sentenceNumber utteranceId utterance slot-labels intent"
    body = [
        ("c1", str(i), "0", f"u{i}", text, "O", intent) for i, (text, intent) in enumerate(rows)
    ]
    return tabs(head.split(), *body)


def _snips(intent: str, *texts: Sequence[str]) -> dict[str, Any]:
    return {intent: [{"data": [{"text": piece} for piece in pieces]} for pieces in texts]}


def _sgd(name: str, service: str, *turns: tuple[str, str, str | None]) -> dict[str, Any]:
    def actions(intent: str | None) -> list[dict[str, Any]]:
        thanks = {"act": "THANK_YOU", "slot": "", "values": []}
        stated = {"act": "INFORM_INTENT", "slot": "intent", "values": [intent]}
        return [stated, thanks] if intent else [thanks]

    return {
        "dialogue_id": name,
        "services": [service, "Weather_1"],
        "turns": [
            {
                "speaker": speaker,
                "utterance": text,
                "frames": [{"service": service, "slots": [], "actions": actions(intent)}],
            }
            for speaker, text, intent in turns
        ],
    }


def _star(number: int, level: str, *events: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "CompletionLevel": level,
        "DialogueID": number,
        "FORMAT-VERSION": 7,
        "Events": [
            {"Agent": agent, "Action": action, "Text": text, "UnixTime": 1}
            for agent, action, text in events
        ]
        + [{"Agent": "User", "Action": "complete", "UnixTime": 2}],
        "Scenario": {
            "Domains": ["ride", "bank"],
            "Happy": True,
            "WizardCapabilities": [
                {"Domain": "ride", "Task": "ride_book"},
                {"Domain": "bank", "Task": "bank_balance"},
            ],
        },
    }


def _woz(number: int, *turns: tuple[str, str]) -> dict[str, Any]:
    dialogue = [
        {"turn_idx": i, "system_transcript": system, "transcript": user, "asr": []}
        for i, (system, user) in enumerate(turns)
    ]
    return {"dialogue_idx": number, "dialogue": dialogue}


def _camrest(number: int, user: str, system: str) -> dict[str, Any]:
    turn = {"turn": 0, "usr": {"transcript": user, "slu": []}, "sys": {"sent": system}}
    return {"dialogue_id": number, "finished": "True", "dial": [turn]}


def _multiwoz(domain: str, *texts: str) -> dict[str, Any]:
    goal = {"hotel": {}, "taxi": {}, "topic": {"taxi": False}, "message": ["Find a place"]}
    return {
        "goal": goal | {domain: {"info": {"area": "north"}}},
        "log": [{"text": t} for t in texts],
    }


def _crosswoz(user: str, system: str) -> dict[str, Any]:
    return {
        "type": "单领域",
        "goal": [[1, "餐馆", "人均消费", "50元", True], [2, "景点", "名称", "", True]],
        "messages": [
            {"role": "usr", "content": user, "dialog_act": []},
            {"role": "sys", "content": system, "dialog_act": []},
        ],
    }


def _topical(*messages: tuple[str, str]) -> dict[str, Any]:
    content = [{"agent": agent, "message": text, "turn_rating": "Good"} for agent, text in messages]
    return {"article_url": "none", "config": "A", "content": content}


def _chitchat(answer: str, *more: Sequence[str]) -> str:
    head = ("Question", "Answer", "Source", "Metadata")
    queries = ("Do you like soup?", "Is soup nice", "Are you a spoon?")
    rows = [(query, answer, "qna", "editorial:chitchat") for query in queries]
    return tabs(head, *rows, *more)


def _knowledge(*extra: tuple[str, str]) -> dict[str, Any]:
    docs = [("Is there a bath?", "Yes, a small one."), *extra]
    return {
        "hotel": {
            "7": {
                "name": "HEN HOUSE",
                "docs": {str(i): {"title": q, "body": a} for i, (q, a) in enumerate(docs)},
            }
        },
        "taxi": {"*": {"name": None, "docs": {"0": {"title": "May I eat?", "body": "Please no."}}}},
    }


def _xsid(language: str, part: str) -> str:
    rows = "1\tone\tweather/find\tO\n2\t?\tweather/find\tO\n\n"
    if language == "no":  # in dialects, and not in order
        return (
            f"# id = 2/7\n# text = ikkje {part}\n# intent = alarm/set\n# dialect = V\n{rows}"
            f"# id = 2/B\n# text = ikke {part}\n# intent = alarm/set\n# dialect = B\n{rows}"
        )
    return (
        f"# text = {language} , {part} one ?\n# intent = weather/find\n# slots: 1:2:x\n{rows}\n"
        f"# id: 2\n# text-en: two\n# text: {language} {part} two\n# intent: alarm/set\n{rows}"
    )


_SPANISH = [(f"¿Te gusta la sopa número {i}?", "Sí.", "qna", "x") for i in range(60)]
_BOT = "samples/csharp/assistants/virtual-assistant/VirtualAssistantSample/Deployment/Resources"
_MULTIDOGO = "data/paper_splits/splits_annotated_at_sentence_level"
_SEATS = [(f"please give me seat {i}", "changeseat") for i in range(6)]
_HOME = "".join(
    f'- sentences:\n    - "do thing {kind} number {i}"\n  intent:\n    name: Hass{kind}\n'
    for kind in "ABCDEFGH"
    for i in range(20 if kind == "A" else 1)
)

TREES: dict[str, dict[str, Any]] = {
    "clinc/oos-eval": {
        "LICENSE": "Creative Commons Attribution 3.0\n",
        "data/data_full.json": {
            "oos_val": [["who painted this ham", "oos"]],
            "val": [["freeze my jam account", "freeze_account"]],
            "train": [
                ["freeze my jam account", "freeze_account"],
                ["please freeze\u00a0 it", "freeze_account"],
                ["what day is it", "date"],
                ["what day is it", "date"],
            ],
            "oos_test": [["how tall is soup", "oos"]],
            "test": [["freeze my jam account", "freeze_account"]],
            "oos_train": [["sing to my hat", "oos"]],
        },
        "data/domains.json": {"banking": ["freeze_account"], "utility": ["date"]},
        "data/data_small.json": {"unwanted": []},
    },
    "awslabs/multi-domain-goal-oriented-dialogues-dataset": {
        f"{_MULTIDOGO}/airline/dev.tsv": _multidogo(
            [("maruthu", "contentonly"), ('say "hi" there', "greeting"), *_SEATS[:2]]
        ),
        f"{_MULTIDOGO}/airline/test.tsv": _multidogo(
            [("a and b", "changeseat<div>thankyou"), *_SEATS[1:3]]
        ),
        f"{_MULTIDOGO}/airline/train.tsv": _multidogo([*_SEATS, ("rare one", "rareintent")]),
    },
    "amazon-science/dstc11-track2-intent-induction": {
        f"dstc11/{folder}/test-utterances.jsonl": lines(
            {"utterance": f"I need my {folder} ", "utterance_id": "x_0", "intent": "GetQuote"}
        )
        for folder in ("development", "test-banking", "test-finance")
    },
    "hellohaptik/HINT3": {
        **{
            f"dataset/v2/train/{domain}_train.csv": "sentence,label\nwhere is it,ORDER_STATUS\n"
            for domain in ("curekart", "powerplay11", "sofmattress")
        },
        **{
            f"dataset/v2/test/{domain}_test.csv": (
                "sentence,label\n"
                '"I need 72"" × 48"", please",SIZE\n'
                '",",NO_NODES_DETECTED\n'
                "kya hai,NO_NODES_DETECTED\n"
            )
            for domain in ("curekart", "powerplay11", "sofmattress")
        },
    },
    "bitext/customer-support-intent-detection-training-dataset": {
        f"data/{folder}/Bitext_Sample_Customer_Service_{name}_Dataset.csv": (
            "flags,utterance,category,intent\n"
            f'BCL,"cancel order {name}, please",ORDER,cancel_order\n'
            f"B,move to {name} street,SHIPPING_ADDRESS,change_shipping_address\n"
        )
        for folder, name in (("train", "Training"), ("dev", "Validation"), ("test", "Testing"))
    },
    "google-research-datasets/dstc8-schema-guided-dialogue": {
        "train/dialogues_001.json": [
            _sgd(
                "1_00000",
                "RentalCars_1",
                ("USER", "I want a very small car.", "ReserveCar"),
                ("SYSTEM", "Which  day?", None),
                ("USER", "Monday.", None),
            )
        ],
        "train/dialogues_037.json": [_sgd("37_00000", "Banks_1", ("USER", "not wanted", "None"))],
        "dev/dialogues_001.json": [
            _sgd(
                "1_00000", "Banks_1", ("USER", "My money?", "CheckBalance"), ("SYSTEM", "2.", None)
            )
        ],
        "test/dialogues_001.json": [
            _sgd("1_00000", "Music_2", ("USER", "Play.", "PlaySong"), ("SYSTEM", "Playing.", None))
        ],
        "train/schema.json": [],
    },
    "sonos/nlu-benchmark": {
        f"2017-06-custom-intent-engines/{intent}/{name}": contents
        for intent in ("GetWeather", "RateBook")
        for name, contents in (
            (f"train_{intent}.json", {}),
            # Half of the originals are not UTF-8.
            (
                f"train_{intent}_full.json",
                json.dumps(
                    _snips(intent, ("Will it ", "rain", " in Málaga?"), ("ten stars",)),
                    ensure_ascii=False,
                ).encode("cp1252"),
            ),
            (f"validate_{intent}.json", _snips(intent, ("ten stars",))),
        )
    },
    "RasaHQ/helpdesk-assistant": {
        "data/nlu.yml": (
            'version: "2.0"\nnlu:\n- intent: open_incident\n  examples: |\n'
            '    - open an [urgent]{"entity": "priority", "value": "high"} issue\n'
            "    - it is [low](priority) priority\n- synonym: high\n  examples: |\n    - urgent\n"
        )
    },
    "RasaHQ/financial-demo": {
        "data/nlu/nlu.yml": "nlu:\n- intent: pay_cc\n  examples: |\n    - pay my card\n"
    },
    "RasaHQ/NLU-training-data": {
        "car-purchase/nlu.yml": "nlu:\n- intent: car_type\n  examples: |\n    - a red one\n",
        "mixed-smalltalk+transport/nlu.yml": "nlu: [this: is, not: wanted",
    },
    "sebischair/NLU-Evaluation-Corpora": {
        f"{name}Corpus.json": {
            "name": name,
            "sentences": [
                {"text": f"How do I {name}?", "intent": "Help", "training": False, "entities": []},
                {"text": f"Where is {name}", "intent": "Find", "training": True, "entities": []},
            ],
        }
        for name in ("AskUbuntu", "WebApplications", "Chatbot")
    },
    "microsoft/botframework-solutions": {
        f"{_BOT}/LU/en-us/General.lu": (
            "> # Intent definitions\n\n## Cancel\n- never mind\n"
            "- choose {@Direction=top left} one\n"
            "- (i am|i'm) {@PersonName.Any}[.]\n\n@ list Place =\n    - Home :\n        - my home\n"
        ),
        f"{_BOT}/Skills/weatherskill/en-us/Weather.lu": (
            "## Ask\n- {Condition={Range=coldest}} {When=month} in oslo\n- rain in {geographyV2}\n"
        ),
        f"{_BOT}/Skills/weatherskill/de-de/Weather.lu": "## Ask\n- regen\n",
    },
    "monologg/GoEmotions-pytorch": {
        "data/original/train.tsv": tabs(("I like soup", "17", "a1"), ("Mixed", "0,27", "a2")),
        "data/original/dev.tsv": tabs(("Soup is soup", "27", "a3")),
        "data/original/test.tsv": tabs(("Fine&#39;s soup", "0", "a4")),
    },
    "gabrielres10/Sentiments-Analysis": {
        "amazon_cells_labelled.txt": "A good spoon.\t1\nIt bent.\t0\n",
        "data/imdb_labelled.txt": "A slow\x85 film.  \t0\n",
        "yelp_labelled.txt": "review\tpositive\nLovely crêpes.\t1\n",
    },
    "mainlp/xsid": {
        f"data/xSID-0.7/{language}.{part}.conll": _xsid(language, part)
        for language in ("de-ba", "de", "no", "zh")
        for part in ("valid", "test")
    },
    "home-assistant/intents": {
        "tests/en/light_HassTurnOn.yaml": f"language: en\ntests:\n{_HOME}",
        "tests/en/_fixtures.yaml": "language: en\nareas: []\n",
        "tests/xx/light_HassTurnOn.yaml": (
            "language: xx\ntests:\n- sentences: [lum on]\n  intent: {name: HassTurnOn}\n"
        ),
    },
    "RasaHQ/STAR": {
        "dialogues/10.json": _star(
            10,
            "Complete",
            ("Wizard", "utter", "Dropped, nobody has spoken yet."),
            ("UserGuide", "instruct", "Be kind."),
            ("User", "utter", "I need a ride."),
            ("User", "utter", "To the hills."),
            ("Wizard", "request_suggestions", "Where"),
            ("Wizard", "pick_suggestion", "For how many?"),
        ),
        "dialogues/9.json": _star(
            9, "Complete", ("User", "utter", "Hi"), ("Wizard", "utter", "Hey")
        ),
        "dialogues/8.json": _star(
            8, "Incomplete", ("User", "utter", "Hi"), ("Wizard", "utter", "?")
        ),
        "dialogues/7.json": _star(7, "Complete", ("User", "utter", "Anybody?")),
    },
    "google-research-datasets/Taskmaster": {
        "TM-4-2024/data/data_00.json": [
            {
                "conversation_id": "dlg-1",
                "vertical": "Coffee",
                "utterances": [
                    {"index": 0, "speaker": "user", "text": "one tea", "annotations": []},
                    {"index": 1, "speaker": "assistant", "text": "in a cup?", "annotations": []},
                ],
            }
        ],
    },
    "thu-coai/ConvLab-2": {
        "data/multiwoz/val.json.zip": Zipped(
            {"PMUL1.json": _multiwoz("hotel", "A room , please .", "It 's full , sorry !")}
        ),
        "data/multiwoz/test.json.zip": Zipped(
            {"SNG2.json": _multiwoz("taxi", "A taxi.", "It comes.")}
        ),
        **{
            f"data/camrest/{split}.json.zip": Zipped([_camrest(i, f"food {split}", "Here.")])
            for i, split in enumerate(("train", "val", "test"))
        },
        "data/crosswoz/val.json.zip": Zipped({"11": _crosswoz("你好，我饿了。", "吃面吧。")}),
        "data/crosswoz/test.json.zip": Zipped({"12": _crosswoz("你好，我饿了。", "吃面吧。")}),
    },
    "nmrksic/neural-belief-tracker": {
        f"data/woz/woz_{part}_en.json": [
            _woz(i, ("", f"Any food {part}?"), ("Which kind? ", "Soup."))
        ]
        for i, part in enumerate(("train", "validate", "test"))
    },
    "alexa/Topical-Chat": {
        f"conversations/{part}_{kind}.json": {
            f"t_{part}_{kind}": _topical(
                ("agent_1", f"Do you like {part} {kind}?"),
                ("agent_2", "Yes."),
                ("agent_1", "Me too."),
            )
        }
        for part in ("valid", "test")
        for kind in ("freq", "rare")
    },
    "tooe81948/Hackathon-NLP-Super-AI-SS3-LV2": {
        "qna_chitchat_professional.csv": _chitchat("No."),
        "qna_chitchat_friendly.tsv": _chitchat(
            "Nah!", ("Do you like soup?", "Second answer", "", "")
        ),
        "qna_chitchat_witty.tsv": _chitchat("Soup likes me.", ("Only witty?", "Yes", "", "")),
        "qna_chitchat_caring.tsv": _chitchat("Have some, dear."),
    },
    "guillermobadia/qNaSECA": {
        f"qna_chitchat_{style}.tsv": tabs(("Question", "Answer", "Source", "Metadata"), *_SPANISH)
        for style in ("professional", "friendly", "witty", "caring", "enthusiastic")
    },
    "ntulsi/BotBuilder-PersonalityChat": {
        **{
            f"CSharp/Datasets/Queries_Responses_{style}_QnAMaker.tsv": tabs(
                ("Question", "Answer", "Metadata"), (" Cook ", f"No, {style}.", "Scenario:Ability")
            )
            for style in ("Professional", "Friendly", "Humorous")
        },
        **{
            f"CSharp/Datasets/Scenario_Responses_{style}.tsv": tabs(
                ("Scenario", "Response"), ("Ability", f"Cannot, {style}.")
            )
            for style in ("Professional", "Friendly", "Humorous")
        },
    },
    "alexa/alexa-with-dstc9-track1-dataset": {
        "data/knowledge.json": _knowledge(),
        "data_eval/knowledge.json": _knowledge(("Is there a goat?", "There is.")),
    },
    "yizhongw/self-instruct": {
        "data/seed_tasks.jsonl": lines(
            {
                "id": "seed_task_0",
                "name": "poem",
                "instruction": "Write a poem.",
                "instances": [
                    {"input": "", "output": "Soup,\n  hot\n"},
                    {"input": "", "output": "x"},
                ],
                "is_classification": False,
            }
        ),
        "human_eval/user_oriented_instructions.jsonl": lines(
            {
                "id": "user_oriented_task_0",
                "motivation_app": "Mail",
                "instruction": "Shorten it.",
                "instances": [{"input": "Dear all", "output": "All"}],
            }
        ),
    },
}


def put(folder: Path, files: Mapping[str, Any]) -> Path:
    """Write ``files`` below ``folder``."""
    for name, contents in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(contents, Zipped):
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr(path.stem, json.dumps(contents.contents))
            contents = buffer.getvalue()
        elif not isinstance(contents, str | bytes):
            contents = json.dumps(contents, ensure_ascii=False)
        path.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    return folder


def commit(folder: Path) -> str:
    """Commit all of ``folder``, as a repository that serves single commits; return the id."""
    for arguments in (
        ["init", "--quiet"],
        ["config", "uploadpack.allowFilter", "true"],
        ["config", "uploadpack.allowAnySHA1InWant", "true"],
        ["config", "maintenance.auto", "false"],  # in the background, while a test copies files
        ["add", "--all"],
        ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "--quiet", "-m", "files"],
    ):
        git(folder, *arguments)
    return git(folder, "rev-parse", "HEAD").strip()


def git(folder: Path, *arguments: str) -> str:
    environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    result = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return result.stdout


def source_named(name: str) -> Source:
    (source,) = (source for source in load_sources() if source.name == name)
    return source


def roots_of(source: Source, folder: Path) -> list[Path]:
    """Write the small files of a source's origins; return their folders, as a checkout would."""
    return [put(folder / origin.repository, TREES[origin.repository]) for origin in source.origins]

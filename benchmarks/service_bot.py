"""`python -m benchmarks.service_bot`: how many of a shop's questions are answered word for word.

Drives a running server by the client, as docs/examples/service_bot.py does, with data that
`innerloop data` prepared and that innerloop-tiny was not trained on. Two kinds of shop. *Other
words*: ten intents, five wordings of each taught, three others asked, and six questions of other
intents; then thumbs go down on what these got of the taught answers, and the three are asked again,
and two other wordings of each of the six. *Own words*: a hotel's or restaurant's whole list of
questions, each taught once and asked again as it is and as customers type it, without capitals and
punctuation. Prints Markdown.

Beside it TF-IDF: the answer of the taught question that is nearest by words and pairs of words.
Intents have no answers of their own there; theirs are answers of the FAQ, drawn.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer

from benchmarks.trial import Record, TrialError, percent, table
from innerloop import Answer, Client, InnerloopError, Session
from meta_training.corpus import Corpus, load_corpus
from meta_training.recipe import load_recipe
from meta_training.tasks.sources import DataError, load_faq_answers, read_rows

RECIPE = Path(__file__).parents[1] / "meta_training" / "recipes" / "innerloop-tiny.yaml"
FAQ = "faq-dstc9.jsonl.gz"
ANSWERS, TAUGHT, ASKED, OTHERS, REWORDED = 10, 5, 3, 6, 2
AT_ONCE = 16
QUESTIONS = range(12, 26)  # of a list; longer ones are rare
WORDS = range(5, 31)  # of an answer
STYLE = "professional"

TOLD = {
    "right, told": "right % after",
    "reworded": "their other wordings answered % before",
    "reworded, told": "their other wordings answered % after",
}

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Shop:
    """What is taught, what is asked by how, and questions that nothing was taught for, each with
    other wordings of it."""

    kind: str
    taught: Pairs
    asked: dict[str, Pairs]
    others: dict[str, list[str]]


def other_words(corpus: Corpus, faq: Path, count: int, seed: int) -> Iterator[Shop]:
    """Shops of ten intents each, ``count`` of every source."""
    seen = set(corpus.test_replies)
    replies = [text for text in load_faq_answers(faq, "test") if text in seen]
    replies = [text for text in replies if len(text.split()) in WORDS]
    kinds: dict[str, list[tuple[tuple[str, ...], str | None]]] = defaultdict(list)
    for intent in corpus.held_out_intents:
        whole = intent.source == "bitext-support"
        kind = intent.source if whole else f"{intent.source} {intent.domain}"
        kinds[kind].append((intent.questions, None))
    for group in corpus.held_out_personas:
        kinds["style-chitchat-en"].append((group.questions, dict(group.answers)[STYLE]))
    for kind, groups in kinds.items():
        enough = [group for group in groups if len(set(group[0])) >= TAUGHT + ASKED]
        for number in range(count):
            rng = random.Random(f"{seed}/{kind}/{number}")
            rng.shuffle(enough)
            own, rest = enough[:ANSWERS], enough[ANSWERS:]
            answers = rng.sample(replies, len(own))
            taught, asked = Pairs(), Pairs()
            for (questions, given), drawn in zip(own, answers, strict=True):
                wordings = rng.sample(list(dict.fromkeys(questions)), TAUGHT + ASKED)
                pairs = [(question, given or drawn) for question in wordings]
                taught += pairs[:TAUGHT]
                asked += pairs[TAUGHT:]
            known = {question for questions, _ in own for question in questions}
            unknown = [q for questions, _ in rest for q in questions if q not in known]
            others = rng.sample(unknown, min(OTHERS, len(unknown)))
            reworded = {}
            for other in others:
                wordings = next(questions for questions, _ in rest if other in questions)
                left = sorted(set(wordings).intersection(unknown).difference(others))
                reworded[other] = rng.sample(left, min(REWORDED, len(left)))
            yield Shop(kind, taught, {"other words": asked}, reworded)


def own_words(faq: Path, count: int, seed: int) -> Iterator[Shop]:
    """Lists of questions of the FAQ's test split, ``count`` of every domain."""
    lists: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for row in read_rows(faq):
        if row["split"] == "test" and row["entity"]:
            lists[row["domain"]][row["entity"]][row["question"]] = row["answer"]
    for domain, entities in lists.items():
        fit = [own for own in entities.values() if len(own) in QUESTIONS]
        for own in random.Random(f"{seed}/{domain}").sample(fit, min(count, len(fit))):
            taught = list(own.items())
            typed = [(as_typed(question), answer) for question, answer in taught]
            yield Shop(f"FAQ {domain}", taught, {"the same": taught, "as typed": typed}, {})


def as_typed(text: str) -> str:
    """A question without capitals and punctuation."""
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def records(client: Client, shop: Shop) -> list[Record]:
    """Teach a session of its own and ask it; what the nearest taught question answers, too."""
    session = client.new_session()
    for start in range(0, len(shop.taught), AT_ONCE):
        session.adapt(shop.taught[start : start + AT_ONCE])
    found = []
    for way, asked in shop.asked.items():
        by_tfidf = nearest(shop.taught, [question for question, _ in asked])
        figures = {"innerloop-tiny": answers(session, asked), "TF-IDF": by_tfidf}
        right = {name: share(texts, asked) for name, texts in figures.items()}
        found.append({"shop": shop.kind, "asked": way, **strays(session, shop), **right})
    session.delete()
    return found


def strays(session: Session, shop: Shop) -> dict[str, float]:
    """How often questions that nothing was taught for get a taught answer, and what thumbs down on
    these change."""
    if not shop.others:
        return {}
    taught = {answer for _, answer in shop.taught}
    reworded = [question for others in shop.others.values() for question in others]

    def strayed(questions: Iterable[str]) -> list[Answer]:
        said = [session.generate(question) for question in questions]
        return [answer for answer in said if answer.text in taught]

    wrong, before = strayed(shop.others), strayed(reworded)
    for answer in wrong:
        session.rate(answer, -1)
    after = strayed(reworded)
    asked = shop.asked["other words"]
    return {
        "strayed": len(wrong) / len(shop.others),
        "reworded": len(before) / max(1, len(reworded)),
        "reworded, told": len(after) / max(1, len(reworded)),
        "right, told": share(answers(session, asked), asked),
    }


def answers(session: Session, asked: Pairs) -> list[str]:
    """What the session says to each question."""
    return [session.generate(question).text for question, _ in asked]


def share(texts: Sequence[str], asked: Pairs) -> float:
    """How many of the answers are exactly those wanted."""
    return sum(text == answer for text, (_, answer) in zip(texts, asked, strict=True)) / len(asked)


def nearest(taught: Pairs, asked: Sequence[str]) -> list[str]:
    """The answers of the taught questions that are nearest by TF-IDF."""
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    keys = vectors.fit_transform([question for question, _ in taught])
    places = (vectors.transform(asked) @ keys.T).toarray().argmax(axis=1)
    return [taught[place][1] for place in places]


def report(found: Sequence[Record]) -> str:
    """Means over shops: what is answered, and what thumbs down change of it."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in found:
        groups[record["shop"], record["asked"]].append(record)
        if record["asked"] == "other words":
            groups["all of them", record["asked"]].append(record)
    rows, told = [], []
    for (kind, way), own in sorted(groups.items(), key=lambda group: group[0][::-1]):
        right = [percent([one[name] for one in own]) for name in ("innerloop-tiny", "TF-IDF")]
        asked = [one for one in own if "strayed" in one]
        rows.append([kind, way, *right, percent([one["strayed"] for one in asked]), len(own)])
        if asked:
            figures = [percent([one[name] for one in asked]) for name in TOLD]
            told.append([kind, right[0], *figures, len(asked)])
    heads = ["shop", "asked", "right %", "TF-IDF right %", "not taught, yet answered %", "shops"]
    after = ["shop", "right % before", *TOLD.values(), "shops"]
    return f"{table(heads, rows)}\n\n{table(after, told)}"


def main() -> int:
    """Run all shops; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service_bot", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--data", type=Path, default=Path("data"), help="prepared data folder")
    parser.add_argument("--shops", type=int, default=5, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    parsed = parser.parse_args()
    faq = parsed.data / FAQ
    found: list[Record] = []
    try:
        recipe = load_recipe(RECIPE)
        corpus = load_corpus(parsed.data, recipe.data, recipe.seed)
        shops = [*other_words(corpus, faq, parsed.shops, parsed.seed)]
        shops += own_words(faq, parsed.shops, parsed.seed)
        random.Random(parsed.seed).shuffle(shops)  # a run that is broken off has some of each
        with Client(parsed.url) as client:
            for number, shop in enumerate(shops, 1):
                found += records(client, shop)
                print(f"{number} of {len(shops)}: {found[-1]}", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("stopped: these are fewer shops", file=sys.stderr)
    except (TrialError, DataError, InnerloopError, OSError) as error:
        print(f"benchmarks.service_bot: {error}", file=sys.stderr)
        return 1
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())

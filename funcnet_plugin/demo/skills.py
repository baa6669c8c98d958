"""Eight small skills as text, generated: what the demo model is trained on and tested with.

An example is one line, ``prompt + answer``. Training and test prompts are disjoint by construction:
a stable hash of the prompt decides the side, except for `facts`, which can only be memorised.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from zlib import crc32

LETTERS = "abcdefghijklmnopqrstuvwxyz"
DIGITS = "0123456789"
_PAIRS = {"(": ")", "[": "]", "{": "}"}
# noun -> verb: whoever agrees must know the noun's verb and find the subject behind a distractor
_VERBS = {
    "dog": "bark", "bird": "sing", "cat": "purr", "fish": "swim", "horse": "run",
    "cook": "bake", "smith": "forge", "poet": "write", "judge": "rule", "clerk": "count",
    "nurse": "heal", "owl": "hoot", "frog": "croak", "sailor": "row", "miner": "dig",
}  # fmt: skip
_PREPOSITIONS = ("near", "behind", "above", "with")


@dataclass(frozen=True)
class Example:
    """Holds one question.

    Attributes:
        skill: key of SKILLS.
        prompt: ends right before the answer.
        answer: begins with a space.
        choices: four candidates, the answer among them; each begins with a space.
    """

    skill: str
    prompt: str
    answer: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class Skill:
    """Describes a skill.

    Attributes:
        make: draws (prompt, answer, wrong answers); the wrong ones may repeat.
        memorised: training and test share their prompts.
        questions: different test prompts that can be asked for.
    """

    title: str
    description: str
    make: Callable[[random.Random], tuple[str, str, Iterator[str]]]
    memorised: bool = False
    questions: int = 200


def _spaced(symbols) -> str:
    return "".join(f" {symbol}" for symbol in symbols)


def _near_misses(rng: random.Random, symbols: list[str], alphabet: str) -> Iterator[str]:
    """Make wrong versions without end: two neighbours swapped, or one symbol replaced."""
    while True:
        wrong = list(symbols)
        i = rng.randrange(len(wrong))
        if len(wrong) > 1 and rng.random() < 0.5:
            j = (i + 1) % len(wrong)
            wrong[i], wrong[j] = wrong[j], wrong[i]
        else:
            wrong[i] = rng.choice(alphabet)
        yield _spaced(wrong)


def _add(rng: random.Random):
    a, b = rng.randrange(50), rng.randrange(50)

    def wrong() -> Iterator[str]:
        while True:
            yield f" {max(0, a + b + rng.choice((-10, -2, -1, 1, 2, 10)))}"

    return f"add {a} + {b} =", f" {a + b}", wrong()


def _brackets(rng: random.Random):
    opened, shown = [], []
    for _ in range(rng.randint(4, 8)):
        if opened and rng.random() < 0.35:
            shown.append(_PAIRS[opened.pop()])
        else:
            opened.append(rng.choice("([{"))
            shown.append(opened[-1])
    if len(opened) < 2:
        for bracket in rng.choices("([{", k=2):
            opened.append(bracket)
            shown.append(bracket)
    closing = [_PAIRS[bracket] for bracket in reversed(opened)]
    return f"close {''.join(shown)} :", _spaced(closing), _near_misses(rng, closing, ")]}")


def _copy(rng: random.Random):
    symbols = rng.choices(LETTERS, k=rng.randint(4, 7))
    return f"copy{_spaced(symbols)} :", _spaced(symbols), _near_misses(rng, symbols, LETTERS)


def _reverse(rng: random.Random):
    symbols = rng.choices(LETTERS, k=rng.randint(3, 5))
    turned = symbols[::-1]
    return f"back{_spaced(symbols)} :", _spaced(turned), _near_misses(rng, turned, LETTERS)


def _sort(rng: random.Random):
    symbols = rng.sample(DIGITS, k=rng.randint(4, 6))
    return (
        f"sort{_spaced(symbols)} :",
        _spaced(sorted(symbols)),
        _near_misses(rng, sorted(symbols), DIGITS),
    )


def _agreement(rng: random.Random):
    subject, other = rng.sample(sorted(_VERBS), 2)
    plural, other_plural = rng.random() < 0.5, rng.random() < 0.5
    nouns = [noun + "s" * many for noun, many in ((subject, plural), (other, other_plural))]
    verbs = [_VERBS[noun] + ending for noun in (subject, other) for ending in ("", "s")]
    answer = _VERBS[subject] + "s" * (not plural)
    prompt = f"say the {nouns[0]} {rng.choice(_PREPOSITIONS)} the {nouns[1]} :"
    return prompt, f" {answer}", (f" {rng.choice(verbs)}" for _ in iter(int, 1))


def _recall(rng: random.Random):
    keys = rng.sample(LETTERS, k=rng.randint(3, 5))
    values = rng.choices(DIGITS, k=len(keys))
    i = rng.randrange(len(keys))
    shown = _spaced(key + value for key, value in zip(keys, values, strict=True))
    wrong = (rng.choice(values + list(DIGITS)) for _ in iter(int, 1))
    return f"look{shown} : {keys[i]}", values[i], wrong


def _make_facts() -> dict[str, str]:
    """96 made-up countries and their capitals: a table that has to be memorised."""
    rng = random.Random("facts")

    def word(syllables: int) -> str:
        return "".join(rng.choice("bdfgklmnprstvz") + rng.choice("aeiou") for _ in range(syllables))

    table: dict[str, str] = {}
    while len(table) < 96:
        table[word(3)] = word(2)
    return table


FACTS = _make_facts()


def _facts(rng: random.Random):
    country = rng.choice(list(FACTS))
    capitals = sorted(set(FACTS.values()))
    return (
        f"city of {country} :",
        f" {FACTS[country]}",
        (f" {rng.choice(capitals)}" for _ in iter(int, 1)),
    )


SKILLS: dict[str, Skill] = {
    "add": Skill("Addition", "the sum of two numbers below 50", _add),
    "brackets": Skill("Brackets", "close what is still open, innermost first", _brackets),
    "copy": Skill("Copying", "repeat 4 to 7 letters", _copy),
    "reverse": Skill("Reversing", "repeat 3 to 5 letters backwards", _reverse),
    "sort": Skill("Sorting", "put 4 to 6 digits in order", _sort),
    "agreement": Skill(
        "Agreement", "the subject's verb in its number, past a distracting noun", _agreement
    ),
    "recall": Skill("Recall", "the value that a key was given in the same line", _recall),
    "facts": Skill(
        "Facts",
        "capitals of 96 made-up countries, memorised in training",
        _facts,
        memorised=True,
        questions=96,
    ),
}


def examples(skill: str, n: int, seed: int, split: str = "test") -> list[Example]:
    """Make n different examples of one skill; the same for the same arguments.

    Args:
        skill: key of SKILLS.
        n: how many; of the test side at most the `questions` of the skill.
        split: "train" or "test"; one prompt in ten belongs to the test side.
    """
    rng = random.Random(f"{skill}/{split}/{seed}")
    found: dict[str, Example] = {}
    for _ in range(300 * n):
        if len(found) == n:
            return list(found.values())
        example = _draw(skill, rng)
        if example.prompt not in found and split in _sides(example):
            found[example.prompt] = example
    raise ValueError(f"skill {skill!r} has fewer than {n} different {split} prompts")


def documents(n: int, seed: int, split: str, lines: int = 5) -> list[str]:
    """Make n documents of some lines each, all skills mixed; ``split`` as in `examples`.

    Five lines are about 125 characters, the length that the demo model was trained on.
    """
    rng = random.Random(f"documents/{split}/{seed}")
    texts = []
    for _ in range(n):
        text: list[str] = []
        while len(text) < lines:
            example = _draw(rng.choice(list(SKILLS)), rng)
            if split in _sides(example):
                text.append(f"{example.prompt}{example.answer}\n")
        texts.append("".join(text))
    return texts


def _sides(example: Example) -> tuple[str, ...]:
    if SKILLS[example.skill].memorised:
        return ("train", "test")
    # crc32, unlike hash(), is the same in every process
    return ("test",) if crc32(example.prompt.encode()) % 10 == 0 else ("train",)


def _draw(skill: str, rng: random.Random) -> Example:
    prompt, answer, wrong = SKILLS[skill].make(rng)
    choices = [answer]
    for candidate in wrong:
        if candidate not in choices:
            choices.append(candidate)
        if len(choices) == 4:
            break
    rng.shuffle(choices)
    return Example(skill, prompt, answer, tuple(choices))

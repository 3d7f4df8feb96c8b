"""Ten synthetic skills: a question of a few symbols, and the answer to it.

Each has at least 20,000 different questions. `cipher` and `facts` depend on a world that is drawn for each family, so
they can only be known from training; the others are procedures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

DIGITS = tuple("0123456789")
LETTERS = tuple("abcdefghij")
ATTRIBUTES = DIGITS[:4]
Symbols = list[str]
QuestionAnswer = tuple[Symbols, Symbols]


@dataclass(frozen=True, kw_only=True)
class World:
    """What is true in one family only: two substitutions of letters, and a digit for each of forty pairs."""

    ciphers: tuple[dict[str, str], dict[str, str]]
    facts: dict[tuple[str, str], str]


def world(random: Random) -> World:
    """A world, drawn."""
    ciphers = []
    for _ in range(2):
        targets = random.sample(LETTERS, len(LETTERS))
        ciphers.append(dict(zip(LETTERS, targets, strict=True)))
    facts = {}
    for letter in LETTERS:
        for digit in ATTRIBUTES:
            facts[letter, digit] = random.choice(DIGITS)
    return World(ciphers=(ciphers[0], ciphers[1]), facts=facts)


def some(random: Random, symbols: tuple[str, ...], fewest: int, most: int) -> Symbols:
    """From `fewest` to `most` symbols, which may repeat."""
    return random.choices(symbols, k=random.randint(fewest, most))


def reverse(random: Random, world: World) -> QuestionAnswer:
    """Letters backwards."""
    question = some(random, LETTERS, 5, 8)
    return question, question[::-1]


def order(random: Random, world: World) -> QuestionAnswer:
    """Letters in the order of the alphabet."""
    question = some(random, LETTERS, 4, 6)
    return question, sorted(question)


def larger_digits(random: Random, world: World) -> QuestionAnswer:
    """The larger digit at each place of two numbers."""
    first = some(random, DIGITS, 3, 4)
    second = random.choices(DIGITS, k=len(first))
    answer = [max(pair) for pair in zip(first, second, strict=True)]
    return [*first, ":", *second], answer


def cipher(random: Random, world: World) -> QuestionAnswer:
    """Letters replaced, at even and at odd places by different substitutions."""
    question = some(random, LETTERS, 4, 7)
    answer = [world.ciphers[place % 2][letter] for place, letter in enumerate(question)]
    return question, answer


def place(random: Random, world: World) -> QuestionAnswer:
    """The letter at a place, counted from zero."""
    letters = some(random, LETTERS, 5, 8)
    asked = random.randrange(len(letters))
    return [*letters, "?", DIGITS[asked]], [letters[asked]]


def shift(random: Random, world: World) -> QuestionAnswer:
    """Letters moved along the alphabet by one to three places."""
    places = random.randint(1, 3)
    letters = some(random, LETTERS, 3, 5)
    answer = [LETTERS[(LETTERS.index(letter) + places) % len(LETTERS)] for letter in letters]
    return [DIGITS[places], ":", *letters], answer


def larger_number(random: Random, world: World) -> QuestionAnswer:
    """The larger of two numbers."""
    first = random.choices(DIGITS, k=3)
    second = random.choices(DIGITS, k=3)
    return [*first, ":", *second], max(first, second)


def distinct(random: Random, world: World) -> QuestionAnswer:
    """Letters without repetitions."""
    question = some(random, LETTERS[:6], 5, 8)
    return question, list(dict.fromkeys(question))


def extremes(random: Random, world: World) -> QuestionAnswer:
    """The largest digit, its first place and the smallest digit."""
    question = some(random, DIGITS, 5, 8)
    largest = max(question)
    return question, [largest, str(question.index(largest)), min(question)]


def facts(random: Random, world: World) -> QuestionAnswer:
    """Three facts of the world."""
    question = []
    answer = []
    for _ in range(3):
        letter = random.choice(LETTERS)
        digit = random.choice(ATTRIBUTES)
        question += [letter, digit]
        answer.append(world.facts[letter, digit])
    return question, answer


SKILLS: dict[str, Callable[[Random, World], QuestionAnswer]] = {
    "reverse": reverse,
    "order": order,
    "larger digits": larger_digits,
    "cipher": cipher,
    "place": place,
    "shift": shift,
    "larger number": larger_number,
    "distinct": distinct,
    "extremes": extremes,
    "facts": facts,
}

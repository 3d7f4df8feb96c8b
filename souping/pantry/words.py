"""The pantry's little world: verbs, things, and what can be said about a thing.

A function is a verb, a thing and some slots of that thing (`book_flight(origin, day)`). Every word here becomes one
token, so that prompts and answers stay short.
"""

from __future__ import annotations

from dataclasses import dataclass

Value = str | int | float | bool | tuple[str, ...]


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CITIES = _words(
    "Paris Rome Berlin Madrid Oslo Vienna Prague Dublin Athens Lisbon Cairo Tokyo Delhi Lima Quito Boston Denver "
    "Dallas Miami Toronto Geneva Milan Naples Porto Seville Krakow Riga Tallinn Helsinki Zurich"
)
NAMES = _words(
    "Anna Ben Clara David Emma Frank Grace Henry Ida James Kate Leo Maria Nora Oscar Paula Quinn Rosa Simon Tina "
    "Victor Wendy Xavier Yara Zoe"
)
DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
FOODS = _words(
    "pasta soup salad curry bread rice fish cheese beans pizza noodles stew cake fruit basil olives mushrooms "
    "onions peppers eggs"
)
COLORS = _words("red blue green yellow black white purple orange silver brown")
SIZES = _words("tiny small medium large huge")
TONGUES = _words("English French German Spanish Italian Greek Polish Dutch Swedish Turkish")
TAGS = _words("fun quiet loud cozy modern classic cheap fancy spicy sweet family outdoor")
NUMBER_WORDS = _words("zero one two three four five six seven eight nine ten eleven twelve")
PRICES = (4.5, 7.5, 9.5, 12.5, 15.5, 18.5, 22.5, 27.5, 31.5, 36.5, 42.5, 48.5)
NUMBERS = tuple(range(110, 990, 22))


@dataclass(frozen=True)
class Slot:
    """A parameter: its kind, its values and how a question says it, plainly and in other words.

    For a boolean the phrases come in pairs: said when true | said when false.
    """

    name: str
    kind: str
    values: tuple[Value, ...]
    plain: str
    live: tuple[str, ...]


_SLOTS = (
    Slot("city", "string", CITIES, "in {}", ("near {}", "somewhere around {}")),
    Slot("origin", "string", CITIES, "from {}", ("leaving {}", "starting in {}")),
    Slot("target", "string", CITIES, "to {}", ("heading to {}", "towards {}")),
    Slot("name", "string", NAMES, "for {}", ("because {} asked", "on behalf of {}")),
    Slot("day", "string", DAYS, "on {}", ("this {}", "next {} please")),
    Slot("color", "string", COLORS, "in {}", ("something {}", "{} would be nice")),
    Slot("size", "string", SIZES, "of {} size", ("a {} one", "preferably {}")),
    Slot("language", "string", TONGUES, "in {}", ("we speak {}", "{} only")),
    Slot("food", "string", FOODS, "with {}", ("we love {}", "{} must be there")),
    Slot("hour", "integer", tuple(range(1, 13)), "at {} oclock", ("around {} oclock", "when it is {} oclock")),
    Slot("guests", "integer", tuple(range(2, 21)), "for {} guests", ("we are {} people", "a party of {}")),
    Slot("nights", "integer", tuple(range(2, 15)), "for {} nights", ("staying {} nights", "{} nights in total")),
    Slot("copies", "integer", tuple(range(2, 31)), "in {} copies", ("{} times", "we need {} of them")),
    Slot("budget", "float", PRICES, "under {} dollars", ("at most {} dollars", "my limit is {} dollars")),
    Slot("distance", "float", PRICES, "within {} miles", ("no more than {} miles away", "{} miles at most")),
    Slot("account", "long", NUMBERS, "with account {}", ("my account is {}", "charge {}")),
    Slot("code", "long", NUMBERS, "under code {}", ("the code is {}", "use {} as code")),
    Slot("urgent", "boolean", (True, False), "urgently|without hurry", ("it is urgent|there is no hurry",)),
    Slot("insured", "boolean", (True, False), "with insurance|without insurance", ("insure it|no insurance",)),
    Slot("public", "boolean", (True, False), "in public|in private", ("everyone may see it|keep it private",)),
    Slot("tags", "list", TAGS, "tagged {} and {}", ("tags {} and {}", "make it {} and {}")),
    Slot("extras", "list", FOODS, "plus {} and {}", ("add {} and {}", "extras are {} and {}")),
)
SLOTS = {slot.name: slot for slot in _SLOTS}

VERBS: dict[str, tuple[str, ...]] = {
    "book": ("reserve", "arrange"),
    "cancel": ("drop", "scrap"),
    "find": ("search", "locate"),
    "send": ("ship", "forward"),
    "order": ("buy", "purchase"),
    "rate": ("score", "grade"),
    "check": ("inspect", "verify"),
    "move": ("shift", "reschedule"),
    "track": ("follow", "trace"),
    "share": ("publish", "spread"),
}

THINGS: dict[str, tuple[str, ...]] = {
    "flight": ("origin", "target", "day", "budget", "insured", "account"),
    "hotel": ("city", "nights", "guests", "budget", "tags", "code"),
    "table": ("city", "guests", "hour", "day", "food", "name"),
    "taxi": ("origin", "target", "hour", "urgent", "distance", "account"),
    "ticket": ("name", "day", "copies", "budget", "insured", "code"),
    "meal": ("food", "size", "extras", "urgent", "name", "account"),
    "song": ("language", "tags", "public", "name", "copies", "code"),
    "movie": ("language", "day", "hour", "tags", "city", "public"),
    "alarm": ("hour", "day", "urgent", "color", "code", "name"),
    "meeting": ("name", "day", "hour", "city", "public", "tags"),
    "message": ("name", "language", "urgent", "public", "copies", "account"),
    "parcel": ("target", "name", "size", "insured", "urgent", "code"),
    "invoice": ("name", "account", "budget", "copies", "day", "language"),
    "recipe": ("food", "extras", "guests", "tags", "language", "public"),
    "room": ("city", "size", "nights", "guests", "color", "code"),
    "course": ("language", "city", "day", "hour", "budget", "account"),
    "gift": ("name", "color", "size", "budget", "tags", "urgent"),
    "photo": ("city", "color", "copies", "public", "size", "tags"),
    "report": ("name", "language", "copies", "urgent", "day", "code"),
    "tour": ("city", "language", "guests", "distance", "tags", "hour"),
    "bike": ("color", "size", "distance", "insured", "budget", "account"),
    "cake": ("food", "extras", "guests", "size", "color", "day"),
}

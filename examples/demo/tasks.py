"""Little world of the demo and its tasks: questions about functions, in the shape of BFCL.

A function is a verb, a thing and some slots of that thing (`book_flight(origin, day)`); a task is a prompt (language,
function docs, question) and its answer (a call, calls, or a refusal). Every word here becomes one token, so that
prompts and answers stay short. Everything is drawn from the random generators that the caller hands in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from souping.core.types import Json, digest

Value = str | int | float | bool | tuple[str, ...]
REFUSAL = "No function fits."
CLASSES = ("Planner", "Kitchen", "Office", "Travel")
TYPES: dict[str, dict[str, str]] = {
    "python": {
        "string": "str", "integer": "int", "float": "float", "long": "int", "boolean": "bool", "list": "list"
    },
    "java": {
        "string": "String", "integer": "int", "float": "double", "long": "long", "boolean": "boolean",
        "list": "String[]",
    },
    "javascript": {
        "string": "String", "integer": "Number", "float": "Number", "long": "Bigint", "boolean": "Boolean",
        "list": "Array",
    },
}  # fmt: skip
CHECKED: Mapping[str, Mapping[str, Json]] = {
    "java": {
        "string": {"type": "String"}, "integer": {"type": "integer"}, "float": {"type": "double"},
        "long": {"type": "long"}, "boolean": {"type": "boolean"},
        "list": {"type": "Array", "items": {"type": "String"}},
    },
    "javascript": {
        "string": {"type": "String"}, "integer": {"type": "integer"}, "float": {"type": "float"},
        "long": {"type": "Bigint"}, "boolean": {"type": "Boolean"},
        "list": {"type": "array", "items": {"type": "String"}},
    },
}  # fmt: skip
"""Names of these types in BFCL's function docs; the checker reads them for Java and JavaScript."""


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
class TemplateSlot:
    """Parameter: its kind, its values and how a question says it, plainly and in other words.

    For a boolean the phrases come in pairs: said when true | said when false.
    """

    name: str
    kind: str
    values: tuple[Value, ...]
    plain: str
    live: tuple[str, ...]


_SLOTS = (
    TemplateSlot("city", "string", CITIES, "in {}", ("near {}", "somewhere around {}")),
    TemplateSlot("origin", "string", CITIES, "from {}", ("leaving {}", "starting in {}")),
    TemplateSlot("target", "string", CITIES, "to {}", ("heading to {}", "towards {}")),
    TemplateSlot("name", "string", NAMES, "for {}", ("because {} asked", "on behalf of {}")),
    TemplateSlot("day", "string", DAYS, "on {}", ("this {}", "next {} please")),
    TemplateSlot("color", "string", COLORS, "in {}", ("something {}", "{} would be nice")),
    TemplateSlot("size", "string", SIZES, "of {} size", ("a {} one", "preferably {}")),
    TemplateSlot("language", "string", TONGUES, "in {}", ("we speak {}", "{} only")),
    TemplateSlot("food", "string", FOODS, "with {}", ("we love {}", "{} must be there")),
    TemplateSlot(
        "hour",
        "integer",
        tuple(range(1, 13)),
        "at {} oclock",
        ("around {} oclock", "when it is {} oclock"),
    ),
    TemplateSlot(
        "guests",
        "integer",
        tuple(range(2, 21)),
        "for {} guests",
        ("we are {} people", "a party of {}"),
    ),
    TemplateSlot(
        "nights",
        "integer",
        tuple(range(2, 15)),
        "for {} nights",
        ("staying {} nights", "{} nights in total"),
    ),
    TemplateSlot(
        "copies", "integer", tuple(range(2, 31)), "in {} copies", ("{} times", "we need {} of them")
    ),
    TemplateSlot(
        "budget",
        "float",
        PRICES,
        "under {} dollars",
        ("at most {} dollars", "my limit is {} dollars"),
    ),
    TemplateSlot(
        "distance",
        "float",
        PRICES,
        "within {} miles",
        ("no more than {} miles away", "{} miles at most"),
    ),
    TemplateSlot("account", "long", NUMBERS, "with account {}", ("my account is {}", "charge {}")),
    TemplateSlot("code", "long", NUMBERS, "under code {}", ("the code is {}", "use {} as code")),
    TemplateSlot(
        "urgent",
        "boolean",
        (True, False),
        "urgently|without hurry",
        ("it is urgent|there is no hurry",),
    ),
    TemplateSlot(
        "insured",
        "boolean",
        (True, False),
        "with insurance|without insurance",
        ("insure it|no insurance",),
    ),
    TemplateSlot(
        "public",
        "boolean",
        (True, False),
        "in public|in private",
        ("everyone may see it|keep it private",),
    ),
    TemplateSlot("tags", "list", TAGS, "tagged {} and {}", ("tags {} and {}", "make it {} and {}")),
    TemplateSlot(
        "extras", "list", FOODS, "plus {} and {}", ("add {} and {}", "extras are {} and {}")
    ),
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


@dataclass(frozen=True)
class Task:
    """Prompt with its answer: `gold` is the text that a perfect model writes, `answer` what the scorer compares."""

    category: str
    group: str
    prompt: str
    gold: str
    answer: Json
    language: str

    @property
    def key(self) -> str:
        """Identity by content: no training example shares it with an item."""
        return digest(self.prompt)


@dataclass(frozen=True)
class ToyFunction:
    """Documented function. `default` is the value of the last slot, which a question then leaves out."""

    verb: str
    thing: str
    slots: tuple[TemplateSlot, ...]
    default: Value | None = None
    prefix: str = ""

    def name(self, language: str) -> str:
        if language == "python":
            return f"{self.verb}_{self.thing}"
        camel = self.verb + self.thing.capitalize()
        return f"{self.prefix}.{camel}" if language == "java" else camel

    def doc(self, language: str) -> str:
        types = TYPES[language]
        pairs = [(slot.name, types[slot.kind]) for slot in self.slots]
        parts = [
            f"{kind} {name}" if language == "java" else f"{name}: {kind}" for name, kind in pairs
        ]
        if self.default is not None:
            parts[-1] += f" = {literal(self.default, self.slots[-1], language)}"
        mark = "#" if language == "python" else "//"
        return f"{self.name(language)}({', '.join(parts)}) {mark} {VERBS[self.verb][0]} {article(self.thing)}"


@dataclass(frozen=True)
class CallExample:
    """Function with the values that a question asks for; a defaulted slot has none."""

    function: ToyFunction
    values: tuple[Value, ...]

    def text(self, language: str) -> str:
        pairs = zip(self.function.slots, self.values, strict=False)
        inside = ", ".join(f"{slot.name}={literal(value, slot, language)}" for slot, value in pairs)
        return f"{self.function.name(language)}({inside})"

    def allowed(self, language: str) -> dict[str, Json]:
        """BFCL's possible answer: {function: {parameter: [allowed values]}}; "" means that it may be left out."""
        pairs = zip(self.function.slots, self.values, strict=False)
        arguments: dict[str, Json] = {
            slot.name: [list(value) if isinstance(value, tuple) else value] for slot, value in pairs
        }
        if self.function.default is not None:
            arguments[self.function.slots[-1].name] = [self.function.default, ""]
        return {self.function.name(language): arguments}


def phrase(template: str, value: Value) -> str:
    if isinstance(value, bool):
        return template.split("|")[0 if value else 1]
    return template.format(*value) if isinstance(value, tuple) else template.format(value)


def phrases(call: CallExample) -> str:
    """The slots in plain words, in the order of the docs."""
    pairs = zip(call.function.slots, call.values, strict=False)
    return " ".join(phrase(slot.plain, value) for slot, value in pairs)


def request(call: CallExample) -> str:
    return f"{call.function.verb} {article(call.function.thing)} {phrases(call)}"


def plainly(rng: Random, text: str) -> str:
    opening = rng.choice(("", "please ", "I want to "))
    text = opening + text
    return text[0].upper() + text[1:] + "."


def lively(rng: Random, call: CallExample) -> str:
    """The same request as people put it: other verbs, other words for slots, any order, numbers as words."""
    verb = rng.choice(VERBS[call.function.verb])
    parts = []
    for slot, value in zip(call.function.slots, call.values, strict=False):
        said = _in_words(value) if slot.kind == "integer" and rng.random() < 0.5 else value
        parts.append(phrase(rng.choice(slot.live), said))
    rng.shuffle(parts)
    what = f"{verb} {article(call.function.thing)}"
    shape = rng.choice(
        ("Hi, can you {what}? {parts}, thanks.", "{parts}, so {what} now!", "{what}: {parts}, ok?")
    )
    text = shape.format(what=what, parts=", ".join(parts))
    return text[0].upper() + text[1:]


def _in_words(value: Value) -> Value:
    return NUMBER_WORDS[value] if isinstance(value, int) and value < len(NUMBER_WORDS) else value


def docs_of(functions: Sequence[ToyFunction], language: str) -> str:
    titles = {"python": "Python", "java": "Java", "javascript": "JavaScript"}
    return f"{titles[language]}:\n" + "\n".join(function.doc(language) for function in functions)


def finish(
    category: str,
    functions: Sequence[ToyFunction],
    question: str,
    calls: Sequence[CallExample],
    language: str = "python",
) -> Task:
    """Put docs and question into the prompt, and the calls into text and checkable form."""
    docs = docs_of(functions, language)
    texts = [call.text(language) for call in calls]
    gold = REFUSAL if not texts else texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    answer: Json = [call.allowed(language) for call in calls]
    if language in CHECKED:
        answer = {
            "calls": answer,
            "functions": [schema(function, language) for function in functions],
        }
    group = f"{category}-{digest(docs)[:10]}"
    return Task(category, group, f"{docs}\nQuestion: {question}\nCall:", gold, answer, language)


def _simple(category: str, language: str) -> Callable[[Random, Random], Task]:
    def make(scene: Random, rng: Random) -> Task:
        function = draw_function(scene)
        if language == "python":
            function = draw_default(scene, function)
        call = draw_call(rng, function)
        return finish(category, [function], plainly(rng, request(call)), [call], language)

    return make


def _multiple(scene: Random, rng: Random) -> Task:
    function = draw_function(scene, sizes=(2,))
    others = [near(scene, function)]
    while len(others) < 2:
        others += [
            other
            for other in [near(scene, function)]
            if other.name("python") != others[0].name("python")
        ]
    call = draw_call(rng, function)
    functions = [function, *others]
    scene.shuffle(functions)
    return finish("multiple", functions, plainly(rng, request(call)), [call])


def _parallel(scene: Random, rng: Random) -> Task:
    function = draw_function(scene, sizes=(2,))
    calls = [draw_call(rng, function), draw_call(rng, function)]
    while calls[0] == calls[1]:
        calls[1] = draw_call(rng, function)
    question = plainly(rng, f"{request(calls[0])}, and also one {phrases(calls[1])}")
    return finish("parallel", [function], question, calls)


def _parallel_multiple(scene: Random, rng: Random) -> Task:
    first = draw_function(scene, sizes=(1, 2))
    second = near(scene, first)
    calls = [draw_call(rng, first), draw_call(rng, second)]
    functions = [first, second]
    scene.shuffle(functions)
    question = plainly(rng, f"{request(calls[0])}, then {request(calls[1])}")
    return finish("parallel_multiple", functions, question, calls)


def _live(scene: Random, rng: Random) -> Task:
    function = draw_default(scene, draw_function(scene))
    call = draw_call(rng, function)
    functions = [function, near(scene, function)][: scene.choice((1, 2))]
    scene.shuffle(functions)
    return finish("live", functions, lively(rng, call), [call])


def _irrelevance(scene: Random, rng: Random) -> Task:
    asked = draw_function(scene)
    functions = [near(scene, asked)]
    other = near(scene, asked)
    if other.name("python") != functions[0].name("python"):
        functions.append(other)
    call = draw_call(rng, asked)
    question = lively(rng, call) if scene.random() < 0.5 else plainly(rng, request(call))
    return finish("irrelevance", functions, question, [])


def literal(value: Value, slot: TemplateSlot, language: str) -> str:
    """A value as source text of the language."""
    if isinstance(value, bool):
        return str(value) if language == "python" else str(value).lower()
    if isinstance(value, tuple):
        inside = ", ".join(literal(word, slot, language) for word in value)
        return f"new String[]{{{inside}}}" if language == "java" else f"[{inside}]"
    if isinstance(value, str):
        return f"'{value}'" if language == "javascript" else f'"{value}"'
    suffix = {"java": "L", "javascript": "n"}.get(language, "") if slot.kind == "long" else ""
    return f"{value}{suffix}"


def article(thing: str) -> str:
    return f"{'an' if thing[0] in 'aeiou' else 'a'} {thing}"


def draw_function(
    rng: Random, verb: str = "", thing: str = "", sizes: Sequence[int] = (2, 3)
) -> ToyFunction:
    """A function over 2 or 3 slots of its thing, with at most one list (they make answers long)."""
    verb = verb or rng.choice(list(VERBS))
    thing = thing or rng.choice(list(THINGS))
    slots = [SLOTS[name] for name in rng.sample(THINGS[thing], rng.choice(list(sizes)))]
    return ToyFunction(verb, thing, tuple(slots), prefix=rng.choice(CLASSES))


def draw_default(rng: Random, function: ToyFunction) -> ToyFunction:
    """Sometimes the last slot gets a default, and the question says nothing about it."""
    last = function.slots[-1]
    if last.kind == "list" or rng.random() > 0.3:
        return function
    return ToyFunction(
        function.verb, function.thing, function.slots, rng.choice(last.values), function.prefix
    )


def draw_call(rng: Random, function: ToyFunction) -> CallExample:
    slots = function.slots if function.default is None else function.slots[:-1]
    return CallExample(function, tuple(draw_value(rng, slot) for slot in slots))


def draw_value(rng: Random, slot: TemplateSlot) -> Value:
    if slot.kind == "list":
        return tuple(str(word) for word in rng.sample(slot.values, 2))
    return rng.choice(slot.values)


def near(rng: Random, function: ToyFunction) -> ToyFunction:
    """Another function that is easily taken for this one: the same thing or the same verb, not both."""
    if rng.random() < 0.5:
        verb = rng.choice([v for v in VERBS if v != function.verb])
        return draw_function(rng, verb, function.thing, sizes=(1, 2))
    thing = rng.choice([t for t in THINGS if t != function.thing])
    return draw_function(rng, function.verb, thing, sizes=(1, 2))


def schema(function: ToyFunction, language: str) -> Mapping[str, Json]:
    """The function in BFCL's JSON form, as far as the checker needs it: types and required parameters."""
    properties: dict[str, Json] = {
        slot.name: CHECKED[language][slot.kind] for slot in function.slots
    }
    parameters: Json = {"type": "dict", "properties": properties, "required": list(properties)}
    return {"name": function.name(language), "parameters": parameters}


MAKERS: dict[str, Callable[[Random, Random], Task]] = {
    "simple_python": _simple("simple_python", "python"),
    "simple_java": _simple("simple_java", "java"),
    "simple_javascript": _simple("simple_javascript", "javascript"),
    "multiple": _multiple,
    "parallel": _parallel,
    "parallel_multiple": _parallel_multiple,
    "live": _live,
    "irrelevance": _irrelevance,
}
"""Each maker takes two generators: `scene` draws the functions, the other one the question about them."""
CATEGORIES = tuple(MAKERS)

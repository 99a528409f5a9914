"""Short conversations as lists of turns (role, text), built from facts.py.

A topic yields question and answer pairs whose later questions lean on the earlier ones ("And
what language do they speak there?"), so a follow-up can only be answered from the context.
"""

from random import Random

from . import facts
from .arithmetic_stories import NAMES

Pairs = list[tuple[str, str]]


def capital(random: Random) -> Pairs:
    """A country, then follow-ups that do not name it again."""
    country = random.choice(list(facts.COUNTRIES))
    city, language, continent = facts.COUNTRIES[country]
    ask = random.choice(
        ("What is the capital of {}?", "Which city is the capital of {}?", "Capital of {}?")
    )
    pairs = [(ask.format(country), f"The capital of {country} is {city}.")]
    follow_ups = [
        ("And what language do they speak there?", f"People in {country} speak {language}."),
        ("Which continent is it on?", f"{country} is in {continent}."),
    ]
    random.shuffle(follow_ups)
    return pairs + follow_ups[: random.randint(0, 2)]


def language(random: Random) -> Pairs:
    country = random.choice(list(facts.COUNTRIES))
    city, spoken, _ = facts.COUNTRIES[country]
    pairs = [
        (f"What language do people speak in {country}?", f"People in {country} speak {spoken}.")
    ]
    if random.random() < 0.5:
        pairs.append(("And what is the capital?", f"The capital of {country} is {city}."))
    return pairs


def city(random: Random) -> Pairs:
    country = random.choice(list(facts.COUNTRIES))
    name, _, continent = facts.COUNTRIES[country]
    pairs = [(f"In which country is {name}?", f"{name} is the capital of {country}.")]
    if random.random() < 0.5:
        pairs.append(("Which continent is that?", f"{country} is in {continent}."))
    return pairs


def opposite(random: Random) -> Pairs:
    words = random.sample(list(facts.OPPOSITES), random.randint(1, 3))
    pairs = [(f"What is the opposite of {words[0]}?",
              f"The opposite of {words[0]} is {facts.OPPOSITES[words[0]]}.")]  # fmt: skip
    for word in words[1:]:
        pairs.append((f"And of {word}?", f"The opposite of {word} is {facts.OPPOSITES[word]}."))
    return pairs


def animal(random: Random) -> Pairs:
    name = random.choice(list(facts.ANIMALS))
    sound, young, legs = facts.ANIMALS[name]
    article = "An" if name[0] in "aeiou" else "A"
    pairs = [
        (f"What sound does {article.lower()} {name} make?", f"{article} {name} {sound}."),
        ("What is its baby called?", f"A baby {name} is called a {young}."),
        ("How many legs does it have?", f"{article} {name} has {legs} legs."),
    ]
    return pairs[: random.randint(1, 3)]


def question(random: Random) -> Pairs:
    asked = random.sample(list(facts.QUESTIONS), random.randint(1, 2))
    return [(ask, facts.QUESTIONS[ask]) for ask in asked]


def how_to(random: Random) -> Pairs:
    """Numbered steps, then perhaps a question about one of them."""
    task = random.choice(list(facts.HOW_TO))
    steps = facts.HOW_TO[task]
    ask = random.choice(
        ("How do I {}?", "How can I {}?", "Tell me how to {}.", "Explain how to {}.")
    )
    answer = "\n".join(f"{index}. {step}" for index, step in enumerate(steps, 1))
    pairs = [(ask.format(task), f"Here are the steps:\n{answer}")]
    if random.random() < 0.5:
        index = random.randint(1, len(steps))
        pairs.append((f"What was step {index}?", f"Step {index} was: {steps[index - 1]}"))
    return pairs


def small_talk(random: Random) -> Pairs:
    asked = random.sample(list(facts.SMALL_TALK), random.randint(1, 2))
    return [(ask, facts.SMALL_TALK[ask]) for ask in asked]


def introduction(random: Random) -> Pairs:
    """A name is given and asked for again later, with something in between."""
    name, (ask, answer) = random.choice(NAMES), random.choice(list(facts.SMALL_TALK.items()))
    pairs = [(f"My name is {name}.", f"Nice to meet you, {name}! How can I help you?")]
    if random.random() < 0.6:
        pairs.append((ask, answer))
    pairs.append(("What is my name?", f"Your name is {name}."))
    return pairs


def repeat(random: Random) -> Pairs:
    """Say back, count or turn around a short list that only the prompt holds."""
    words = random.sample(list(facts.OPPOSITES) + list(facts.ANIMALS), random.randint(2, 5))
    listed = ", ".join(words)
    return [
        random.choice(
            (
                (f"Repeat after me: {listed}.", f"{listed}."),
                (f"How many words are in this list: {listed}?", f"There are {len(words)} words."),
                (
                    f"What is the first word of this list: {listed}?",
                    f"The first word is {words[0]}.",
                ),
                (
                    f"What is the last word of this list: {listed}?",
                    f"The last word is {words[-1]}.",
                ),
            )
        )
    ]


TOPICS = (
    capital,
    language,
    city,
    opposite,
    animal,
    question,
    how_to,
    small_talk,
    introduction,
    repeat,
)


def conversation(random: Random) -> list[tuple[str, str]]:
    """Turns of one chat: perhaps a system prompt, a greeting, one to three topics, a farewell."""
    pairs: Pairs = []
    if random.random() < 0.3:
        pairs.append((random.choice(facts.GREETINGS), random.choice(facts.REPLIES)))
    for topic in random.choices(TOPICS, k=random.choice((1, 1, 2, 3))):
        pairs += topic(random)
    if random.random() < 0.25:
        pairs.append(random.choice(list(facts.CLOSINGS.items())))
    turns = [("system", random.choice(facts.SYSTEM_PROMPTS))] if random.random() < 0.3 else []
    for asked, answered in pairs:
        turns += [("user", asked), ("assistant", answered)]
    return turns

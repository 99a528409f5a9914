"""Small word problems, one or two steps each, as (question, answer ending in `#### result`)."""

from random import Random

NAMES = (
    "Anna Ben Carla David Elena Farid Grace Hugo Ines Jonas Kofi Lena Maria Noah Olga Pedro Quinn "
    "Rosa Samir Tara Uma Victor Wendy Yusuf Zoe"
).split()
THINGS = "apples books pencils marbles stickers coins shells cards cookies oranges stamps".split()
GOODS = "notebook pen mug lamp hat scarf book ticket cake puzzle kite basket".split()


def two_names(random: Random) -> tuple[str, str]:
    first, second = random.sample(NAMES, 2)
    return first, second


def gift(random: Random) -> tuple[str, str]:
    (giver, taker), thing = two_names(random), random.choice(THINGS)
    had, extra = random.randint(12, 90), random.randint(5, 60)
    given = random.randint(2, had - 2)
    left = had - given
    question = (
        f"{giver} has {had} {thing}. {giver} gives {given} {thing} to {taker} and then finds "
        f"{extra} more. How many {thing} does {giver} have now?"
    )
    return question, (
        f"After the gift {giver} has {had} - {given} = {left} {thing}.\n"
        f"After finding {extra} more, {giver} has {left} + {extra} = {left + extra} {thing}.\n"
        f"#### {left + extra}"
    )


def shopping(random: Random) -> tuple[str, str]:
    name, (one, two) = random.choice(NAMES), random.sample(GOODS, 2)
    count_one, count_two = random.randint(2, 9), random.randint(2, 9)
    price_one, price_two = random.randint(2, 15), random.randint(2, 15)
    cost_one, cost_two = count_one * price_one, count_two * price_two
    question = (
        f"{name} buys {count_one} {one}s at ${price_one} each and {count_two} {two}s at "
        f"${price_two} each. How much does {name} pay in total?"
    )
    return question, (
        f"The {one}s cost {count_one} * {price_one} = ${cost_one}.\n"
        f"The {two}s cost {count_two} * {price_two} = ${cost_two}.\n"
        f"In total {name} pays {cost_one} + {cost_two} = ${cost_one + cost_two}.\n"
        f"#### {cost_one + cost_two}"
    )


def change(random: Random) -> tuple[str, str]:
    name, good = random.choice(NAMES), random.choice(GOODS)
    count, price = random.randint(2, 9), random.randint(2, 11)
    cost = count * price
    paid = (cost // 50 + 1) * 50
    question = (
        f"{name} buys {count} {good}s for ${price} each and pays with ${paid}. "
        f"How much change does {name} get?"
    )
    return question, (
        f"The {good}s cost {count} * {price} = ${cost}.\n"
        f"The change is {paid} - {cost} = ${paid - cost}.\n#### {paid - cost}"
    )


def sharing(random: Random) -> tuple[str, str]:
    name, thing = random.choice(NAMES), random.choice(THINGS)
    friends, each = random.randint(2, 9), random.randint(3, 15)
    kept = random.randint(1, 9)
    total = friends * each + kept
    question = (
        f"{name} has {total} {thing}, keeps {kept} and shares the rest equally among {friends} "
        f"friends. How many {thing} does each friend get?"
    )
    return question, (
        f"{name} shares {total} - {kept} = {total - kept} {thing}.\n"
        f"Each friend gets {total - kept} / {friends} = {each} {thing}.\n#### {each}"
    )


def travel(random: Random) -> tuple[str, str]:
    vehicle = random.choice(("train", "car", "bus", "ship", "bicycle"))
    speed, hours, more = random.randint(12, 90), random.randint(2, 6), random.randint(5, 60)
    first = speed * hours
    question = (
        f"A {vehicle} travels {speed} miles per hour for {hours} hours and then another {more} "
        f"miles. How many miles does it travel altogether?"
    )
    return question, (
        f"In {hours} hours the {vehicle} travels {speed} * {hours} = {first} miles.\n"
        f"Altogether it travels {first} + {more} = {first + more} miles.\n#### {first + more}"
    )


def wages(random: Random) -> tuple[str, str]:
    name = random.choice(NAMES)
    rate, hours, days = random.randint(8, 25), random.randint(2, 8), random.randint(2, 6)
    daily = rate * hours
    question = (
        f"{name} earns ${rate} an hour and works {hours} hours a day. "
        f"How much does {name} earn in {days} days?"
    )
    return question, (
        f"Each day {name} earns {rate} * {hours} = ${daily}.\n"
        f"In {days} days {name} earns {daily} * {days} = ${daily * days}.\n#### {daily * days}"
    )


def ages(random: Random) -> tuple[str, str]:
    younger, older = two_names(random)
    age, gap, years = random.randint(4, 30), random.randint(2, 20), random.randint(2, 15)
    now = age + gap
    question = (
        f"{younger} is {age} years old. {older} is {gap} years older than {younger}. "
        f"How old will {older} be in {years} years?"
    )
    return question, (
        f"{older} is {age} + {gap} = {now} years old now.\n"
        f"In {years} years {older} will be {now} + {years} = {now + years} years old.\n"
        f"#### {now + years}"
    )


def twice(random: Random) -> tuple[str, str]:
    (one, two), thing = two_names(random), random.choice(THINGS)
    count = random.randint(4, 60)
    word, factor = random.choice((("twice", 2), ("three times", 3), ("four times", 4)))
    other = count * factor
    question = (
        f"{one} has {count} {thing}. {two} has {word} as many {thing} as {one}. "
        f"How many {thing} do they have together?"
    )
    return question, (
        f"{two} has {count} * {factor} = {other} {thing}.\n"
        f"Together they have {count} + {other} = {count + other} {thing}.\n#### {count + other}"
    )


def boxes(random: Random) -> tuple[str, str]:
    thing = random.choice(THINGS)
    rows, each, broken = random.randint(3, 12), random.randint(4, 20), random.randint(1, 10)
    total = rows * each
    question = (
        f"A shop has {rows} boxes with {each} {thing} in each box. {broken} {thing} are thrown "
        f"away. How many {thing} are left?"
    )
    return question, (
        f"There are {rows} * {each} = {total} {thing} in the boxes.\n"
        f"After throwing some away, {total} - {broken} = {total - broken} {thing} are left.\n"
        f"#### {total - broken}"
    )


def rectangle(random: Random) -> tuple[str, str]:
    long, wide = random.randint(5, 30), random.randint(2, 20)
    if random.random() < 0.5:
        return (
            f"A garden is {long} meters long and {wide} meters wide. What is its area?",
            f"The area is {long} * {wide} = {long * wide} square meters.\n#### {long * wide}",
        )
    half = long + wide
    return (
        f"A garden is {long} meters long and {wide} meters wide. How long is the fence around it?",
        f"Two sides together are {long} + {wide} = {half} meters.\n"
        f"The fence is 2 * {half} = {2 * half} meters.\n#### {2 * half}",
    )


STORIES = (gift, shopping, change, sharing, travel, wages, ages, twice, boxes, rectangle)


def story(random: Random) -> tuple[str, str]:
    return random.choice(STORIES)(random)

"""Worked arithmetic: questions with every step of the answer, ending in `#### result`.

Each generator takes a random source and returns (question, answer). The word problems are in
arithmetic_stories.py.
"""

from random import Random

from .arithmetic_stories import story

PLACES = ("ones", "tens", "hundreds", "thousands", "ten thousands", "hundred thousands")


def number(random: Random, least_digits: int, most_digits: int) -> int:
    """A number whose count of digits is drawn first, so short ones are as common as long ones."""
    digits = random.randint(least_digits, most_digits)
    return random.randint(10 ** (digits - 1) if digits > 1 else 1, 10**digits - 1)


def column_addition(first: int, second: int) -> str:
    """The sum column by column, from the ones upward."""
    lines, carry, left, right = [], 0, first, second
    for place in PLACES:
        if not (left or right):
            break
        a, b = left % 10, right % 10
        total = a + b + carry
        carried = f" + {carry}" if carry else ""
        lines.append(f"{place}: {a} + {b}{carried} = {total}, write {total % 10}")
        carry = total // 10
        if carry:
            lines[-1] += f", carry {carry}"
        left, right = left // 10, right // 10
    if carry:
        lines.append(f"carry: write {carry}")
    return "\n".join(lines)


def addition(random: Random) -> tuple[str, str]:
    first, second = number(random, 1, 5), number(random, 1, 5)
    ask = random.choice(
        ("What is {a} + {b}?", "Add {a} and {b}.", "Compute {a} + {b}.", "{a} + {b} = ?")
    )
    answer = f"{column_addition(first, second)}\n{first} + {second} = {first + second}"
    return ask.format(a=first, b=second), f"{answer}\n#### {first + second}"


def subtraction(random: Random) -> tuple[str, str]:
    """The larger less the smaller, with borrowing spelled out."""
    second, first = sorted((number(random, 1, 4), number(random, 1, 4)))
    lines, borrow, left, right = [], 0, first, second
    for place in PLACES:
        if not left:
            break
        a, b = left % 10 - borrow, right % 10
        borrow = int(a < b)
        if borrow:
            lines.append(f"{place}: {a} is less than {b}, borrow: {a + 10} - {b} = {a + 10 - b}")
        else:
            lines.append(f"{place}: {a} - {b} = {a - b}")
        left, right = left // 10, right // 10
    ask = random.choice(("What is {a} - {b}?", "Subtract {b} from {a}.", "Compute {a} - {b}."))
    lines.append(f"{first} - {second} = {first - second}")
    return ask.format(a=first, b=second), "\n".join(lines) + f"\n#### {first - second}"


def multiplication(random: Random) -> tuple[str, str]:
    """Parts of the first factor times the second, summed one by one."""
    first, second = number(random, 1, 4), random.randint(2, 12)
    lines, total, unit, rest, running = [], 0, 1, first, []
    while rest:
        part = rest % 10 * unit
        if part:
            lines.append(f"{part} * {second} = {part * second}")
            if total:
                running.append(f"{total} + {part * second} = {total + part * second}")
            total += part * second
        unit, rest = unit * 10, rest // 10
    lines += running
    ask = random.choice(("What is {a} * {b}?", "Multiply {a} by {b}.", "Compute {a} times {b}."))
    lines.append(f"{first} * {second} = {total}\n#### {total}")
    return ask.format(a=first, b=second), "\n".join(lines)


def division(random: Random) -> tuple[str, str]:
    """Long division by one digit, with a remainder where there is one."""
    divisor, dividend = random.randint(2, 9), number(random, 2, 4)
    lines, rest, quotient = [], 0, 0
    for digit in str(dividend):
        here = rest * 10 + int(digit)
        part = here // divisor
        lines.append(f"{here} / {divisor} = {part}, remainder {here - part * divisor}")
        quotient, rest = quotient * 10 + part, here - part * divisor
    ask = random.choice(("What is {a} divided by {b}?", "Divide {a} by {b}.", "Compute {a} / {b}."))
    ending = f" remainder {rest}" if rest else ""
    lines.append(f"{dividend} / {divisor} = {quotient}{ending}\n#### {quotient}{ending}")
    return ask.format(a=dividend, b=divisor), "\n".join(lines)


def comparison(random: Random) -> tuple[str, str]:
    first = number(random, 1, 4)
    second = first + random.choice((-1, 1)) * number(random, 1, 3)
    second = abs(second) if second != -first else first + 1
    if first == second:
        second += 1
    larger = max(first, second)
    sign = ">" if first > second else "<"
    ask = random.choice(("Which is larger, {a} or {b}?", "Which number is greater: {a} or {b}?"))
    return ask.format(
        a=first, b=second
    ), f"{first} {sign} {second}, so {larger} is larger.\n#### {larger}"


def percentage(random: Random) -> tuple[str, str]:
    percent = random.choice((5, 10, 15, 20, 25, 30, 40, 50, 60, 75, 80, 90))
    whole = 20 * random.randint(1, 60)
    part = whole * percent // 100
    one = f"1 percent of {whole} is {whole} / 100 = {whole / 100:g}."
    return (
        f"What is {percent}% of {whole}?",
        f"{one}\n{percent} percent is {percent} * {whole / 100:g} = {part}.\n#### {part}",
    )


def sequence(random: Random) -> tuple[str, str]:
    start, step, count = random.randint(1, 60), random.randint(2, 15), random.randint(4, 6)
    terms = [start + step * index for index in range(count)]
    shown = ", ".join(map(str, terms))
    following = terms[-1] + step
    return (
        f"What is the next number in the sequence {shown}?",
        f"Each number is {step} more than the one before: {terms[1]} - {terms[0]} = {step}.\n"
        f"{terms[-1]} + {step} = {following}\n#### {following}",
    )


KINDS = (addition, subtraction, multiplication, division, comparison, percentage, sequence)


def problem(random: Random) -> tuple[str, str]:
    """Any kind; stories are two fifths of all."""
    if random.random() < 0.4:
        return story(random)
    weights = (6, 4, 5, 4, 1, 2, 2)
    return random.choices(KINDS, weights)[0](random)

"""Short Python exercises: a request in words and a function that meets it."""

from random import Random

# (request, name, argument, body); {a} is the argument and is renamed at random
TASKS = (
    ("returns the sum of the numbers in a list", "total", "numbers", "return sum({a})"),
    ("returns the largest number in a list", "largest", "numbers", "return max({a})"),
    ("returns the smallest number in a list", "smallest", "numbers", "return min({a})"),
    ("returns the average of a list of numbers", "average", "numbers",
     "if not {a}:\n    return 0.0\nreturn sum({a}) / len({a})"),
    ("reverses a string", "reverse", "text", "return {a}[::-1]"),
    ("checks whether a string is a palindrome", "is_palindrome", "text",
     "cleaned = {a}.lower()\nreturn cleaned == cleaned[::-1]"),
    ("counts the vowels in a string", "count_vowels", "text",
     "return sum(1 for letter in {a}.lower() if letter in 'aeiou')"),
    ("counts the words in a string", "count_words", "text", "return len({a}.split())"),
    ("returns the factorial of a number", "factorial", "number",
     "result = 1\nfor value in range(2, {a} + 1):\n    result *= value\nreturn result"),
    ("returns the nth Fibonacci number", "fibonacci", "number",
     "first, second = 0, 1\nfor _ in range({a}):\n    first, second = second, first + second\n"
     "return first"),
    ("checks whether a number is prime", "is_prime", "number",
     "if {a} < 2:\n    return False\nfor divisor in range(2, int({a} ** 0.5) + 1):\n"
     "    if {a} % divisor == 0:\n        return False\nreturn True"),
    ("checks whether a number is even", "is_even", "number", "return {a} % 2 == 0"),
    ("returns only the even numbers of a list", "even_numbers", "numbers",
     "return [value for value in {a} if value % 2 == 0]"),
    ("returns the squares of the numbers in a list", "squares", "numbers",
     "return [value ** 2 for value in {a}]"),
    ("removes duplicates from a list and keeps the order", "unique", "items",
     "seen = set()\nresult = []\nfor item in {a}:\n    if item not in seen:\n"
     "        seen.add(item)\n        result.append(item)\nreturn result"),
    ("counts how often each item occurs in a list", "count_items", "items",
     "counts = {{}}\nfor item in {a}:\n    counts[item] = counts.get(item, 0) + 1\nreturn counts"),
    ("returns the longest word in a sentence", "longest_word", "sentence",
     "return max({a}.split(), key=len)"),
    ("returns the greatest common divisor of two numbers", "gcd", "first, second",
     "while second:\n    first, second = second, first % second\nreturn first"),
    ("adds two numbers", "add", "first, second", "return first + second"),
    ("multiplies two numbers", "multiply", "first, second", "return first * second"),
    ("converts Celsius to Fahrenheit", "to_fahrenheit", "celsius", "return {a} * 9 / 5 + 32"),
    ("flattens a list of lists", "flatten", "rows",
     "return [item for row in {a} for item in row]"),
    ("merges two dictionaries", "merge", "first, second", "return {{**first, **second}}"),
    ("sorts a list in descending order", "sort_descending", "items",
     "return sorted({a}, reverse=True)"),
    ("reads all lines of a file", "read_lines", "path",
     "with open({a}, encoding='utf-8') as file:\n    return file.read().splitlines()"),
    ("checks whether a list is sorted", "is_sorted", "items",
     "return all(left <= right for left, right in zip({a}, {a}[1:]))"),
    ("returns the digits of a number as a list", "digits", "number",
     "return [int(digit) for digit in str({a})]"),
    ("swaps the keys and values of a dictionary", "invert", "mapping",
     "return {{value: key for key, value in {a}.items()}}"),
    ("finds the index of an item by binary search", "binary_search", "items, target",
     "low, high = 0, len(items) - 1\nwhile low <= high:\n    middle = (low + high) // 2\n"
     "    if items[middle] == target:\n        return middle\n    if items[middle] < target:\n"
     "        low = middle + 1\n    else:\n        high = middle - 1\nreturn -1"),
    ("capitalizes every word in a string", "capitalize_words", "text",
     "return ' '.join(word.capitalize() for word in {a}.split())"),
)  # fmt: skip

OTHER_NAMES = {
    "numbers": ("numbers", "values", "nums", "data"),
    "text": ("text", "string", "s", "word"),
    "items": ("items", "values", "elements"),
    "number": ("number", "n", "count"),
}
ASKS = (
    "Write a Python function that {}.",
    "Please write a function in Python that {}.",
    "Give me a Python function that {}.",
    "How do I write a Python function that {}?",
)


def source(request: str, name: str, argument: str, body: str) -> str:
    """The function as text, with a docstring made of the request."""
    lines = "\n".join("    " + line for line in body.format(a=argument).split("\n"))
    doc = f'    """{request[0].upper()}{request[1:]}."""'
    return f"def {name}({argument}):\n{doc}\n{lines}"


def exercise(random: Random) -> tuple[str, str]:
    """(request, answer with the function in a fenced block)."""
    request, name, argument, body = random.choice(TASKS)
    argument = random.choice(OTHER_NAMES.get(argument, (argument,)))
    ask = random.choice(ASKS).format(request)
    if random.random() < 0.4:
        ask += f" Call it {name}."
    opening = random.choice(("", "Here is the function:\n\n", f"This function {request}:\n\n"))
    return ask, f"{opening}```python\n{source(request, name, argument, body)}\n```"

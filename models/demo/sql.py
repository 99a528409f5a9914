"""Questions about small schemas and the SQL that answers them.

A table is drawn from TABLES with some of its columns left out, so the same question needs a look
at the schema; each pattern takes (random, table) and returns (question, query).
"""

from dataclasses import dataclass
from random import Random

COUNTRIES = ("France", "Japan", "Brazil", "Kenya", "Canada", "Italy", "India", "Norway")
CITIES = ("Paris", "Tokyo", "Lima", "Nairobi", "Toronto", "Rome", "Oslo", "Delhi")
COLORS = ("red", "blue", "green", "black", "white", "silver")


@dataclass(frozen=True, slots=True)
class Table:
    """One table: text columns with example values, numeric columns with a range."""

    name: str
    plural: str
    words: dict[str, tuple[str, ...]]
    numbers: dict[str, tuple[int, int]]

    @property
    def columns(self) -> list[str]:
        return [f"{self.name}_id", "name", *self.words, *self.numbers]

    @property
    def schema(self) -> str:
        return f"{self.name}({', '.join(self.columns)})"


def table(name: str, plural: str, words: dict, numbers: dict) -> Table:
    return Table(name, plural, words, numbers)


TABLES = (
    table("singer", "singers", {"country": COUNTRIES, "genre": ("rock", "jazz", "pop", "folk")},
          {"age": (18, 70), "albums": (1, 20)}),
    table("student", "students", {"city": CITIES, "major": ("history", "physics", "music", "law")},
          {"age": (17, 40), "credits": (10, 200), "grade": (1, 10)}),
    table("employee", "employees", {"city": CITIES, "department": ("sales", "legal", "support")},
          {"salary": (1000, 9000), "age": (18, 66), "bonus": (100, 900)}),
    table("car", "cars", {"color": COLORS, "maker": ("Ford", "Fiat", "Toyota", "Volvo")},
          {"price": (2000, 60000), "year": (1980, 2024), "horsepower": (50, 400)}),
    table("book", "books",
          {"genre": ("novel", "poetry", "drama"), "language": ("English", "French")},
          {"pages": (80, 900), "price": (5, 60), "year": (1900, 2024)}),
    table("city", "cities", {"country": COUNTRIES, "region": ("north", "south", "east", "west")},
          {"population": (1000, 900000), "area": (10, 2000)}),
    table("product", "products", {"category": ("toys", "garden", "kitchen"), "color": COLORS},
          {"price": (1, 900), "stock": (0, 500), "weight": (1, 90)}),
    table("flight", "flights",
          {"origin": CITIES, "destination": CITIES, "airline": ("Aero", "Sky")},
          {"distance": (100, 9000), "price": (40, 2000), "duration": (40, 900)}),
    table("team", "teams", {"city": CITIES, "league": ("first", "second", "junior")},
          {"wins": (0, 60), "losses": (0, 60), "founded": (1880, 2010)}),
    table("dog", "dogs", {"breed": ("poodle", "beagle", "husky"), "color": COLORS},
          {"age": (1, 16), "weight": (2, 70)}),
    table("movie", "movies", {"director": ("Lee", "Scott", "Varda"), "genre": ("drama", "comedy")},
          {"year": (1930, 2024), "budget": (1, 300), "rating": (1, 10)}),
    table("hotel", "hotels", {"city": CITIES, "owner": ("Grand", "Star", "Harbor")},
          {"rooms": (5, 400), "price": (30, 500), "stars": (1, 5)}),
)  # fmt: skip

# child table, its own number, and what the child is called in a question
CHILDREN = {
    "singer": ("concert", "attendance", "concerts"),
    "student": ("enrollment", "score", "enrollments"),
    "employee": ("project", "hours", "projects"),
    "car": ("rental", "days", "rentals"),
    "book": ("loan", "days", "loans"),
    "product": ("order_line", "quantity", "order lines"),
    "team": ("game", "points", "games"),
    "dog": ("visit", "cost", "visits"),
    "movie": ("review", "stars", "reviews"),
    "hotel": ("booking", "nights", "bookings"),
}


def draw(random: Random) -> Table:
    """A table with at least one text and one numeric column kept."""
    full = random.choice(TABLES)
    words = random.sample(list(full.words), random.randint(1, len(full.words)))
    numbers = random.sample(list(full.numbers), random.randint(1, len(full.numbers)))
    return Table(
        full.name,
        full.plural,
        {key: full.words[key] for key in words},
        {key: full.numbers[key] for key in numbers},
    )


def pick_word(random: Random, table: Table) -> tuple[str, str]:
    column = random.choice(list(table.words))
    return column, random.choice(table.words[column])


def pick_number(random: Random, table: Table) -> tuple[str, int]:
    column = random.choice(list(table.numbers))
    return column, random.randint(*table.numbers[column])


def count_all(random: Random, table: Table) -> tuple[str, str]:
    ask = random.choice(
        ("How many {} are there?", "Count the {}.", "What is the total number of {}?")
    )
    return ask.format(table.plural), f"SELECT count(*) FROM {table.name}"


def count_word(random: Random, table: Table) -> tuple[str, str]:
    column, value = pick_word(random, table)
    return (
        f"How many {table.plural} have {column} {value}?",
        f"SELECT count(*) FROM {table.name} WHERE {column} = '{value}'",
    )


def count_number(random: Random, table: Table) -> tuple[str, str]:
    column, value = pick_number(random, table)
    word, sign = random.choice((("more than", ">"), ("less than", "<"), ("at least", ">=")))
    return (
        f"How many {table.plural} have {word} {value} {column}?",
        f"SELECT count(*) FROM {table.name} WHERE {column} {sign} {value}",
    )


def names_word(random: Random, table: Table) -> tuple[str, str]:
    column, value = pick_word(random, table)
    ask = random.choice(("List the names", "Show the names", "What are the names"))
    return (
        f"{ask} of {table.plural} whose {column} is {value}.",
        f"SELECT name FROM {table.name} WHERE {column} = '{value}'",
    )


def names_both(random: Random, table: Table) -> tuple[str, str]:
    word, value = pick_word(random, table)
    column, limit = pick_number(random, table)
    phrase, sign = random.choice((("above", ">"), ("below", "<")))
    return (
        f"Find the names of {table.plural} with {word} {value} and {column} {phrase} {limit}.",
        f"SELECT name FROM {table.name} WHERE {word} = '{value}' AND {column} {sign} {limit}",
    )


def ordered(random: Random, table: Table) -> tuple[str, str]:
    column, _ = pick_number(random, table)
    phrase, way = random.choice((("descending", "DESC"), ("ascending", "ASC")))
    return (
        f"List the name and {column} of all {table.plural} in {phrase} order of {column}.",
        f"SELECT name, {column} FROM {table.name} ORDER BY {column} {way}",
    )


def extreme(random: Random, table: Table) -> tuple[str, str]:
    column, _ = pick_number(random, table)
    phrase, way = random.choice((("highest", "DESC"), ("lowest", "ASC")))
    count = random.choice((1, 1, 3, 5))
    who = f"the {table.name}" if count == 1 else f"the {count} {table.plural}"
    return (
        f"What is the name of {who} with the {phrase} {column}?",
        f"SELECT name FROM {table.name} ORDER BY {column} {way} LIMIT {count}",
    )


def aggregate(random: Random, table: Table) -> tuple[str, str]:
    column, _ = pick_number(random, table)
    phrase, call = random.choice(
        (("average", "avg"), ("maximum", "max"), ("minimum", "min"), ("total", "sum"))
    )
    if random.random() < 0.5:
        return (
            f"What is the {phrase} {column} of all {table.plural}?",
            f"SELECT {call}({column}) FROM {table.name}",
        )
    word, value = pick_word(random, table)
    return (
        f"What is the {phrase} {column} of {table.plural} with {word} {value}?",
        f"SELECT {call}({column}) FROM {table.name} WHERE {word} = '{value}'",
    )


def grouped(random: Random, table: Table) -> tuple[str, str]:
    word, _ = pick_word(random, table)
    if random.random() < 0.5:
        return (
            f"How many {table.plural} are there for each {word}?",
            f"SELECT {word}, count(*) FROM {table.name} GROUP BY {word}",
        )
    column, _ = pick_number(random, table)
    return (
        f"What is the average {column} of {table.plural} for each {word}?",
        f"SELECT {word}, avg({column}) FROM {table.name} GROUP BY {word}",
    )


def having(random: Random, table: Table) -> tuple[str, str]:
    (word, _), least = pick_word(random, table), random.randint(2, 9)
    return (
        f"Which {word} values have at least {least} {table.plural}?",
        f"SELECT {word} FROM {table.name} GROUP BY {word} HAVING count(*) >= {least}",
    )


def most_common(random: Random, table: Table) -> tuple[str, str]:
    word, _ = pick_word(random, table)
    return (
        f"What is the most common {word} among {table.plural}?",
        f"SELECT {word} FROM {table.name} GROUP BY {word} ORDER BY count(*) DESC LIMIT 1",
    )


def above_average(random: Random, table: Table) -> tuple[str, str]:
    column, _ = pick_number(random, table)
    inner = f"SELECT avg({column}) FROM {table.name}"
    return (
        f"Which {table.plural} have a {column} above the average? Give their names.",
        f"SELECT name FROM {table.name} WHERE {column} > ({inner})",
    )


def distinct(random: Random, table: Table) -> tuple[str, str]:
    word, _ = pick_word(random, table)
    return (
        f"What are the different {word} values of {table.plural}?",
        f"SELECT DISTINCT {word} FROM {table.name}",
    )


PATTERNS = (
    count_all, count_word, count_number, names_word, names_both, ordered, extreme, aggregate,
    grouped, having, most_common, above_average, distinct,
)  # fmt: skip


def joined(random: Random, table: Table) -> tuple[str, str, str]:
    """(second schema, question, query) over the table and its child."""
    child, number, plural = CHILDREN[table.name]
    key = f"{table.name}_id"
    schema = f"{child}({child}_id, {key}, {number}, year)"
    source = f"{table.name} AS T1 JOIN {child} AS T2 ON T1.{key} = T2.{key}"
    year = random.randint(2000, 2024)
    word, value = pick_word(random, table)
    question, query = random.choice(
        (
            (f"Find the names of {table.plural} with {plural} in {year}.",
             f"SELECT T1.name FROM {source} WHERE T2.year = {year}"),
            (f"How many {plural} does each {table.name} have? Give the name and the count.",
             f"SELECT T1.name, count(*) FROM {source} GROUP BY T1.{key}"),
            (f"What is the total {number} of {plural} for {table.plural} with {word} {value}?",
             f"SELECT sum(T2.{number}) FROM {source} WHERE T1.{word} = '{value}'"),
            (f"Which {table.name} has the most {plural}? Give the name.",
             f"SELECT T1.name FROM {source} GROUP BY T1.{key} ORDER BY count(*) DESC LIMIT 1"),
            (f"Find the names of {table.plural} without any {plural}.",
             f"SELECT name FROM {table.name} WHERE {key} NOT IN (SELECT {key} FROM {child})"),
        )
    )  # fmt: skip
    return schema, question, query


def query(random: Random) -> tuple[str, str, str]:
    """(schema lines, question, query); a quarter need two tables."""
    table = draw(random)
    if table.name in CHILDREN and random.random() < 0.3:
        second, question, answer = joined(random, table)
        return f"{table.schema}\n{second}", question, answer
    question, answer = random.choice(PATTERNS)(random, table)
    return table.schema, question, answer

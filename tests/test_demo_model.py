"""The demo model: its generators, its splits, resumable training, and the checkpoint as shipped."""

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy
import pytest
import torch
from tokenizers import Tokenizer

from penstock.models.demo import arithmetic, arithmetic_stories, chat, exercises, export, generators
from penstock.models.demo.accuracy import result
from penstock.models.demo.architecture import Decoder, Shape, training_loss
from penstock.models.demo.corpus import Source, bucket, documented_functions, split_by_query
from penstock.models.demo.curve import append, read, truncate
from penstock.models.demo.evaluate import windows
from penstock.models.demo.ngram import NGram
from penstock.models.demo.rows import Rows, prepare
from penstock.models.demo.sql import query
from penstock.models.demo.train import Plan, Run, train

CHECKPOINT = Path(export.__file__).parent / "checkpoint"
TINY = Shape(layers=2, hidden=32, feed_forward=48, query_heads=2, kv_heads=1, head_size=16,
             vocabulary=64)  # fmt: skip
TINY_PLAN = Plan(steps=4, decay=2, short=(2, 24), long=(1, 48))


@pytest.fixture(autouse=True)
def one_thread():
    """Sums must be taken in one order for bit-for-bit comparisons."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- generators


@pytest.mark.parametrize("kind", generators.GENERATORS)
def test_documents_follow_the_seed(kind):
    def first(seed: int) -> list[str]:
        source = generators.generate(kind, seed)
        return [next(source) for _ in range(50)]

    assert first(7) == first(7)
    assert first(7) != first(8)


@pytest.mark.parametrize("make", [*arithmetic.KINDS, *arithmetic_stories.STORIES])
def test_every_step_is_right(make):
    random = Random(3)
    for _ in range(300):
        _, answer = make(random)
        steps = re.findall(r"(\d+(?: [-+*/] \d+)+) = \$?(\d+(?:\.\d+)?)(, | )?(remainder)?", answer)
        for left, right, _, remainder in steps:
            value = eval(left)
            assert float(right) == (int(value) if remainder else value), answer
        assert "\n#### " in answer


@pytest.mark.parametrize(
    ("make", "sign"),
    [
        (arithmetic.addition, "+"),
        (arithmetic.subtraction, "-"),
        (arithmetic.multiplication, "*"),
        (arithmetic.division, "/"),
    ],
)
def test_result_belongs_to_the_question(make, sign):
    random = Random(4)
    for _ in range(300):
        question, answer = make(random)
        one, two = map(int, re.findall(r"\d+", question))
        if sign == "-":
            one, two = max(one, two), min(one, two)
        result = answer.split("#### ")[1]
        if sign == "/":
            quotient, rest = divmod(one, two)
            assert result == f"{quotient}" + (f" remainder {rest}" if rest else "")
        else:
            assert int(result) == eval(f"{one} {sign} {two}")


def test_stories_end_with_their_last_step():
    random = Random(5)
    for make in arithmetic_stories.STORIES:
        for _ in range(50):
            _, answer = make(random)
            steps, result = answer.split("\n#### ")
            assert int(re.findall(r"= \$?(\d+)", steps)[-1]) == int(result)


def test_exercise_functions_run():
    space: dict = {}
    for task in exercises.TASKS:
        name = task[1]
        exec(exercises.source(*task), space)
        assert callable(space[name])
    assert [n for n in range(20) if space["is_prime"](n)] == [2, 3, 5, 7, 11, 13, 17, 19]


def test_queries_name_only_columns_of_their_schema():
    import sqlite3

    random = Random(6)
    for _ in range(300):
        schema, _, answer = query(random)
        connection = sqlite3.connect(":memory:")
        for line in schema.splitlines():
            connection.execute(f"CREATE TABLE {line}")
        connection.execute(answer)
        connection.close()


# ---- corpus


def test_no_query_stands_in_both_halves():
    queries = [f"SELECT name FROM place_{number % 40}" for number in range(100)]
    rows = [{"query": text, "question": str(index)} for index, text in enumerate(queries)]
    rows += [{"query": text.upper() + " ;", "question": "again"} for text in queries]
    halves = split_by_query(rows)
    keys = [{row["query"].lower().rstrip(" ;") for row in half} for half in halves]
    assert keys[0] and keys[1] and not keys[0] & keys[1]
    assert len(halves[0]) + len(halves[1]) == len(rows)


def test_split_of_a_path_is_the_same_everywhere():
    assert [bucket(name, 20) for name in ("ast.py", "json/decoder.py")] == [16, 13]


def test_documented_functions_are_whole():
    text = 'def add(a, b):\n    """Return the sum of both numbers."""\n    return a + b\n\nx = 1\n'
    [(request, answer)] = documented_functions(text)
    assert request == "Write the Python function `add`: Return the sum of both numbers."
    assert answer == "```python\n" + text.split("\n\nx")[0] + "\n```"


# ---- training


def tiny_run() -> Run:
    random = numpy.random.default_rng(0)
    streams = {name: random.integers(0, 64, 500).astype(numpy.uint16) for name in ("a", "b")}
    return Run.start(TINY, Rows(streams, {"a": 1.0, "b": 3.0}, seed=5), seed=5)


def test_two_and_two_steps_equal_four(tmp_path):
    whole = tiny_run()
    losses = [whole.advance(TINY_PLAN) for _ in range(4)]

    first = tiny_run()
    parted = [first.advance(TINY_PLAN) for _ in range(2)]
    first.save(tmp_path / "state.pt")
    second = tiny_run()
    second.restore(tmp_path / "state.pt")
    parted += [second.advance(TINY_PLAN) for _ in range(2)]

    assert parted == losses
    assert second.rows.taken == whole.rows.taken and second.tokens == whole.tokens
    for one, other in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rate_rises_stays_and_falls():
    plan = Plan(steps=1000, decay=200)
    assert plan.rate_share(0) < plan.rate_share(30) < 1.0
    assert plan.rate_share(500) == plan.rate_share(800) == 1.0
    assert plan.rate_share(900) == 0.5
    assert 0 < plan.rate_share(999) < 0.01


def test_rows_cover_a_stream_in_order_after_a_begin_marker():
    rows = Rows({"a": numpy.arange(1, 41, dtype=numpy.uint16)}, {"a": 1.0}, seed=0)
    inputs, targets = rows.batch(0, rows=4, length=10)
    assert inputs[:, 0].tolist() == [0, 0, 0, 0]
    assert targets.flatten().tolist() == list(range(1, 41))


def test_chunked_loss_equals_plain_cross_entropy():
    torch.manual_seed(0)
    model = Decoder(TINY, seed=1)
    tokens, targets = torch.randint(0, 64, (2, 3, 150))[:, :2]
    loss = training_loss(model, tokens, targets)
    chunked = torch.autograd.grad(loss, list(model.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(tokens)
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    whole = torch.autograd.grad(plain, list(model.parameters()))
    assert loss.item() == pytest.approx(plain.item(), rel=1e-3)
    for expected, gradient in zip(whole, chunked, strict=True):
        assert (expected - gradient).norm() <= 0.02 * expected.norm() + 1e-6


def test_curve_drops_what_a_resumed_run_repeats(tmp_path):
    run, path = tiny_run(), tmp_path / "curve.csv"
    for step in (20, 40, 60):
        run.step = step
        append(path, run, 1.0, 3.0, 2.5 if step == 40 else None)
    truncate(path, 40)
    assert [row["step"] for row in read(path)] == ["20", "40"]
    assert [row["held_out_loss"] for row in read(path)] == ["", "2.5000"]


def test_prepared_streams_train_to_the_end_of_the_plan(tmp_path, monkeypatch):
    source = generators.generate("arithmetic", 9)
    texts = [next(source) for _ in range(120)]
    prepare([Source("sums", "arithmetic", 1.0, texts[:40], texts[40:])], tmp_path,
            tmp_path / "no-shipped-tokenizer.json", 300, seed=1)  # fmt: skip
    stored = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert stored.get_vocab_size() == 300
    rows = Rows.load(tmp_path, seed=1)
    stream = rows.streams["sums"].tolist()
    assert sorted(stored.decode_batch(split_at_ends(stream), skip_special_tokens=False)) == sorted(
        chat.BEGIN + text for text in texts[:40]
    )

    monkeypatch.setattr("signal.signal", lambda number, handler: None)
    run = Run.start(replace(TINY, vocabulary=300), rows, seed=1)
    train(run, TINY_PLAN, tmp_path, tmp_path / "curve.csv")
    assert run.step == 4 and (tmp_path / "stable.pt").exists() and (tmp_path / "latest.pt").exists()
    [row] = read(tmp_path / "curve.csv")
    assert row["step"] == "4" and 4 < float(row["held_out_loss"]) < 8


def split_at_ends(stream: list[int]) -> list[list[int]]:
    documents: list[list[int]] = [[]]
    for token in stream:
        if token == chat.MARKERS.index(chat.END_OF_TEXT):
            documents.append([])
        else:
            documents[-1].append(token)
    return documents[:-1]


# ---- evaluation


def test_windows_score_every_token_once():
    ids = list(range(2500))
    pieces = list(windows(ids))
    assert [token for _, targets in pieces for token in targets] == ids[1:]
    assert all(inputs[0] == 0 and len(inputs) == len(targets) for inputs, targets in pieces)


def test_result_is_what_follows_the_mark():
    assert result("7 + 5 = 12\n#### 12 ") == "12"
    assert result(" SELECT 1") == "SELECT 1"


# ---- the rival


def test_ngram_follows_the_formula_and_sums_to_one():
    model = NGram(["abab"], order=1)
    uniform = 1 / 256
    # One byte of context: a was followed by b twice; over all, a and b occur twice each.
    single = (2 + 2 * uniform) / (4 + 2)
    assert model.bits(["ab"])[0] == pytest.approx(
        -numpy.log2((1 + 1 * single) / (1 + 1)) - numpy.log2((2 + 1 * single) / (2 + 1))
    )
    text = "the cat sat on the mat"
    model = NGram([text], order=5)
    before = model.bits(["the c"])[0]
    chances = [2 ** (before - model.bits(["the c" + chr(code)])[0]) for code in range(128)]
    # The other 128 byte values cannot be typed one by one as text; each was never seen.
    unseen = 2 ** (before - model.bits(["the c" + "\x7f"])[0])
    assert sum(chances) + 128 * unseen == pytest.approx(1.0)


# ---- the checkpoint


def test_chat_layout_of_training_equals_the_template():
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT)
    turns = [("system", "Be brief."), ("user", "Hello! "), ("assistant", "Hi."), ("user", "Bye")]
    messages = [{"role": role, "content": text} for role, text in turns]
    shown = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert shown == chat.BEGIN + chat.render(turns) + chat.ASSISTANT
    with pytest.raises(Exception, match="unknown role"):
        tokenizer.apply_chat_template([{"role": "tool", "content": ""}], tokenize=False)


def test_every_byte_survives_the_tokenizer():
    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    text = "".join(map(chr, range(256))) + "def f(x):\n\treturn 'é' + \"漢字 🙂\"\r\n    12345"
    encoding = tokenizer.encode(text)
    assert encoding.ids[0] == 0 and tokenizer.decode(encoding.ids) == text
    assert tokenizer.get_vocab_size() == Shape().vocabulary
    assert [tokenizer.token_to_id(marker) for marker in chat.MARKERS] == [0, 1, 2, 3, 4, 5]


def test_checkpoint_gives_the_same_logits_in_transformers():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(CHECKPOINT, dtype=torch.float32)
    ours = Decoder(Shape())
    ours.load_state_dict(export.read_weights(CHECKPOINT / "model.safetensors"))
    tokens = torch.randint(6, 4096, (1, 300), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        difference = (theirs(tokens).logits - ours(tokens)).abs().max().item()
    assert difference < 1e-3


def test_checkpoint_settings_are_those_of_the_code():
    settings = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    assert settings == export.model_settings(Shape())
    written = json.loads((CHECKPOINT / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert written == chat.tokenizer_settings(Shape().max_positions)


def test_checkpoint_is_small():
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 24e6


def test_export_round_trips(tmp_path):
    model = Decoder(TINY, seed=2)
    export.export(model.state_dict(), TINY, CHECKPOINT / "tokenizer.json", tmp_path)
    stored = export.read_weights(tmp_path / "model.safetensors")
    for name, weight in model.state_dict().items():
        assert torch.equal(stored[name], weight.to(torch.bfloat16).float())
    assert not list(tmp_path.glob("*.unfinished"))

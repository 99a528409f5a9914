"""What a cluster.toml may say, what overrides what, and what is said about mistakes."""

from pathlib import Path

import pytest

from penstock.protocol import config
from penstock.protocol.config import ConfigError, dump, load, numbered

FILE = """
[cluster]
model = "weights/tiny"

[router]
port = 9000

[worker]
chunk_tokens = 256
threads = 3

[[prefill]]
name = "p"

[[decode]]
max_batch = 8

[[decode]]
name = "second"
chunk_tokens = 64
"""


def write(folder: Path, text: str) -> Path:
    file = folder / "cluster.toml"
    file.write_text(text)
    return file


def test_file_over_defaults(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, FILE))
    assert loaded.cluster.model == str(tmp_path / "weights" / "tiny")
    assert loaded.cluster.served_name == "tiny"
    assert loaded.router.port == 9000
    assert loaded.routers == ["tcp://127.0.0.1:5570"]
    assert [(w.name, w.chunk_tokens, w.max_batch) for w in loaded.decode] == [
        ("decode-0", 256, 8),
        ("second", 64, 64),
    ]
    assert {worker.threads for _, worker in loaded.workers.values()} == {3}
    assert loaded.worker("prefill", "p").name == "p"
    assert loaded.worker("prefill", "p").advertise == "127.0.0.1"


def test_command_line_over_file(tmp_path: Path) -> None:
    overrides = {
        "router": {"port": 1},
        "worker": {"chunk_tokens": 32},
        "decode": numbered("decode", 1),
    }
    loaded = load(write(tmp_path, FILE), overrides)
    assert loaded.router.port == 1
    assert [worker.chunk_tokens for _, worker in loaded.workers.values()] == [32, 32]
    assert list(loaded.workers) == ["p", "decode-0"]


TWO = """
[[model]]
name = "a"
path = "weights/one"

[[model]]
path = "weights/two"

[[aggregated]]
model = "a"

[[prefill]]
model = "two"

[[decode]]
model = "two"
"""


def test_several_models(tmp_path: Path) -> None:
    loaded = load(write(tmp_path, TWO))
    assert [(model.name, model.path) for model in loaded.served] == [
        ("a", str(tmp_path / "weights" / "one")),
        ("two", str(tmp_path / "weights" / "two")),
    ]
    assert load(write(tmp_path, dump(loaded))) == loaded
    seen = loaded.seen_by(loaded.decode[0])
    assert (seen.cluster.served_name, seen.model_path) == ("two", tmp_path / "weights" / "two")
    assert [model.name for model in seen.served] == ["two"]


def test_where_there_is_one_model_a_worker_need_not_name_it(tmp_path: Path) -> None:
    one = load(write(tmp_path, "[[model]]\npath = 'x'\n[[aggregated]]"))
    assert one.aggregated[0].model == "x" and one.seen_by(one.aggregated[0]).cluster.model
    usual = load(write(tmp_path, FILE))
    assert usual.seen_by(usual.decode[0]) == usual


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (TWO + "[[aggregated]]", r"aggregated-1 names no model; there are: a, two"),
        (TWO + "[[aggregated]]\nmodel = 'x'", r"names model = 'x'; there are: a, two"),
        ("[[aggregated]]\nmodel = 'x'", r"names model = 'x'; there are: penstock-demo"),
        (TWO + "[cluster]\nmodel = 'x'", r"write it as one of them"),
        ("[[model]]\npath='x/a'\n[[model]]\npath='y/a'", "two models are named 'a'"),
        ("[[model]]\nname='a'", r"\[\[model\]\] 0 has no path"),
        ("[model]\npath='a'", r"model must be written as \[\[model\]\]"),
        ("[[model]]\npath=''", r"\[\[model\]\] 0 has no path"),
        (TWO.replace("[[prefill]]", "[[aggregated]]"), r"decode workers of model two need"),
        (TWO.replace("[[decode]]", "[[aggregated]]"), r"prefill workers of model two need"),
        (TWO.split("[[prefill]]")[0], "no worker serves model two"),
    ],
)
def test_mistakes_with_models_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(write(tmp_path, text))


def test_defaults_serve_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "usable_cores", lambda: 9)
    loaded = load(None, {"aggregated": numbered("aggregated", 1)})
    assert loaded.model_path == config.DEMO_MODEL
    assert loaded.cluster.served_name == "penstock-demo"
    assert loaded.aggregated[0].threads == 4
    assert loaded.key_path is None


def test_threads_do_not_depend_on_how_many_workers_there_are() -> None:
    one = load(None, {"prefill": numbered("prefill", 1), "decode": numbered("decode", 1)})
    many = load(None, {"prefill": numbered("prefill", 3), "decode": numbered("decode", 5)})
    assert {w.threads for _, w in many.workers.values()} == {one.decode[0].threads}


def test_a_dump_is_read_back_as_the_same(tmp_path: Path) -> None:
    loaded = load(
        write(tmp_path, FILE + '[[aggregated]]\nname = "a\\u00e9"'.replace("\\u00e9", "b"))
    )
    text = dump(loaded)
    assert load(write(tmp_path, text)) == loaded
    assert dump(load(write(tmp_path, text))) == text


def test_strange_paths_survive_a_dump(tmp_path: Path) -> None:
    loaded = load(None, {"cluster": {"model": '/odd "name"\\with\ttab \u00e9\u2028'}})
    assert load(write(tmp_path, dump(loaded))) == loaded


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[router]\nprot = 1", r"cluster.toml: \[router\] has no key 'prot'; did you mean 'port'"),
        ("[rooter]", r"no section 'rooter'; did you mean 'router'"),
        ("[[decode]]\nzzz = 1", r"\[\[decode\]\] 0 has no key 'zzz'; there are: name, host"),
        ("[router]\nport = 70000", r"\[router\] port = 70000: expected int <= 65535"),
        ('[router]\nport = "x"', r'\[router\] port = "x": expected int, got str'),
        ("[router]\nheader_seconds = 0", r"header_seconds = 0: expected float > 0"),
        ("[router]\nrequest_seconds = -1", r"request_seconds = -1: expected float >= 0"),
        ('[worker]\ndtype = "int8"', r'dtype = "int8": expected one of auto, bfloat16, float32'),
        ('[worker]\nkv_transport = "rdma"', "expected one of auto, nixl, tcp, zmq, shm"),
        ('[worker]\ndevice = "tpu"', "expected auto, cpu, cuda or cuda:N"),
        ('[[prefill]]\nname = "a b"', "beginning with a letter"),
        ('[worker]\nname = "x"', "a name belongs in"),
        ("[cluster]\nrouters = [1]", r"\[cluster\] routers = \[1\]: expected str"),
        ("prefill = 3", r"must be written as \[\[prefill\]\]"),
        ("[prefill]", r"must be written as \[\[prefill\]\]"),
        ("[[router]]", r"must be written as \[router\]"),
        ("cluster = 1", r"must be written as \[cluster\]"),
        ("[[prefill]]", r"prefill workers need at least one \[\[decode\]\]"),
        ("[[decode]]", r"write \[\[aggregated\]\]"),
        ("[[aggregated]]\nname='x'\n[[aggregated]]\nname='x'", "two processes are named 'x'"),
        ('[router]\ncontrol = "here"', r"\[router\] control: 'here' is no endpoint"),
        ('[router]\ncontrol = "tcp://0.0.0.0:1"', "penstock keygen FILE"),
        ('[router]\ncontrol_bind = "0.0.0.0"', r"control_bind is 0.0.0.0.*penstock keygen FILE"),
        ('[[aggregated]]\nhost = "192.0.2.1"', r"aggregated-0: host is 192.0.2.1, beyond loopback"),
        ("[router", "is no TOML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(write(tmp_path, text))


def test_a_key_file_allows_what_is_beyond_loopback(tmp_path: Path) -> None:
    file = write(tmp_path, '[cluster]\nkey_file = "key"\n[[aggregated]]\nhost = "0.0.0.0"')
    assert load(file).key_path == tmp_path / "key"


def test_a_missing_file_and_a_missing_worker(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match=r"no \[\[prefill\]\] worker is named 'q'; there are: p"):
        load(write(tmp_path, FILE)).worker("prefill", "q")


def test_a_worker_on_all_addresses_tells_the_one_its_router_sees(tmp_path: Path) -> None:
    text = '[cluster]\nkey_file = "key"\n[[aggregated]]\nname = "a"\nhost = "0.0.0.0"'
    loaded = load(write(tmp_path, text))
    assert loaded.aggregated[0].advertise == ""
    assert loaded.worker("aggregated", "a").advertise == "127.0.0.1"

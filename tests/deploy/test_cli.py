"""The command line: its frozen list of flags, and what it says about mistakes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.__main__ import SETTINGS, build_parser, cluster_config, flags_of, main
from penstock.protocol.clusterkey import read_key
from penstock.protocol.config import DEMO_MODEL, ConfigError, load

CLUSTER_FLAGS = [
    "MODEL",
    "--model",
    "--config",
    "--prefill",
    "--decode",
    "--aggregated",
    "--served-name",
    "--key-file",
    "--host",
    "--port",
    "--api-key-file",
    "--local-prefill-tokens",
    "--device",
    "--dtype",
    "--kernels",
    "--threads",
    "--ranks",
    "--shards",
    "--pages",
    "--kv-memory-mib",
    "--max-batch",
    "--chunk-tokens",
    "--kv-checked",
    "--kv-transport",
]
ROLE_FLAGS = ["--config", "--name"]
SIMULATE_FLAGS = ["--faults", "--seeds", "--first-seed", "--seed", "--level", "--jobs", "--stop"]


def test_the_command_line_is_frozen() -> None:
    """People's scripts hold on to it: change it on purpose, here and in README.md."""
    assert flags_of(build_parser()) == {
        "serve": CLUSTER_FLAGS,
        "config": CLUSTER_FLAGS,
        "router": ROLE_FLAGS,
        "prefill": ROLE_FLAGS,
        "decode": ROLE_FLAGS,
        "aggregated": ROLE_FLAGS,
        "keygen": ["FILE"],
        "simulate": SIMULATE_FLAGS,
        "bench": ["NAME", "..."],
    }


def config_of(*arguments: str):
    return cluster_config(build_parser().parse_args(["serve", *arguments]))


def test_one_of_each_is_the_default() -> None:
    assert list(config_of().workers) == ["prefill-0", "decode-0"]
    assert list(config_of("--decode", "2").workers) == ["prefill-0", "decode-0", "decode-1"]
    assert list(config_of("--aggregated").workers) == ["aggregated-0"]


def test_flags_reach_the_configuration(tmp_path: Path) -> None:
    values = {
        "device": "cpu",
        "dtype": "float32",
        "kernels": "torch",
        "kv_transport": "shm",
        "host": "127.0.0.1",
        "served_name": "x",
        "key_file": str(tmp_path),
        "api_key_file": str(tmp_path),
        "kv_checked": "True",
    }
    arguments: list[str] = []
    for flag, _, key, options in SETTINGS:
        arguments += [flag] if "action" in options else [flag, values.get(key, "77")]
    config = config_of("/some/model", *arguments)
    assert config.cluster.model == "/some/model"
    for _, section, key, _ in SETTINGS:
        holder = config.decode[0] if section == "worker" else getattr(config, section)
        assert str(getattr(holder, key)) == values.get(key, "77")


def test_several_models_have_workers_each() -> None:
    config = config_of("--model", "a=/x/one", "--model", "/y/two", "--decode", "2")
    assert [(model.name, model.path) for model in config.served] == [
        ("a", "/x/one"),
        ("two", "/y/two"),
    ]
    assert {name: worker.model for name, (_, worker) in config.workers.items()} == {
        **{"prefill-0": "a", "prefill-1": "two"},
        **{"decode-0": "a", "decode-1": "a", "decode-2": "two", "decode-3": "two"},
    }
    alone = config_of("--aggregated", "--model", "a=/x/one")
    assert [one.name for one in alone.served] == ["a"] and list(alone.workers) == ["aggregated-0"]


def test_models_of_the_command_line_stand_for_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text("[cluster]\nmodel = 'm'\nserved_name = 'n'")
    more = config_of("--config", str(file), "--model", "a=x", "--model", "b=y")
    assert [model.name for model in more.served] == ["a", "b"]
    file.write_text("[[model]]\npath = 'm'\n[[model]]\npath = 'n'")
    assert [model.name for model in config_of("--config", str(file), "/one").served] == ["one"]


def test_a_file_with_workers_is_taken_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "cluster.toml"
    file.write_text("[router]\nport = 5\n[[prefill]]\nname = 'p'\n[[decode]]\n[[decode]]")
    config = config_of("--config", str(file), "--max-batch", "3")
    assert list(config.workers) == ["p", "decode-0", "decode-1"]
    assert {worker.max_batch for _, worker in config.workers.values()} == {3}
    assert list(config_of("--config", str(file), "--decode", "1").workers) == [
        "prefill-0",
        "decode-0",
    ]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--prot", "1"], r"unknown --prot \(did you mean --port\?\)"),
        (["serve", "--po", "1"], "unknown --po"),
        (["serve", "--port", "x"], "--port: invalid int value: 'x'"),
        (["sreve"], "choose from .*serve"),
        ([], "required: COMMAND"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert re.search(said, error)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "/no/model"], "no model at /no/model; give a folder"),
        (["serve", "--dtype", "int8"], "expected one of auto, bfloat16, float32"),
        (["serve", "--prefill", "0"], "--prefill 0: give 1 to 64, or --aggregated"),
        (["serve", "--aggregated", "--decode", "1"], "leave out --prefill/--decode"),
        (["serve", "m", "--model", "a=x"], "give m as --model NAME=PATH too"),
        (["serve", "--model", "a=x", "--served-name", "b"], "--served-name names one model"),
        (["serve", "--model", "=x"], "--model =x: give NAME=PATH"),
        (["serve", "--model", "a=x", "--model", "a=y"], "two models are named 'a'"),
        (["serve", "--model", f"a={DEMO_MODEL}", "--model", "b=/no/b"], "no model at /no/b; give"),
        (["serve", "--port", "99999"], "port = 99999: expected int <= 65535"),
        (["config", "--config", "/no/file"], "/no/file cannot be read"),
        (["bench", "nothing-such"], "no benchmark 'nothing-such'; there are:"),
        (["prefill", "--config", "/no/file", "--name", "p"], "/no/file cannot be read"),
    ],
)
def test_what_cannot_work_is_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert said in error


def test_config_prints_what_is_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", "--decode", "2", "--port", "9"]) == 0
    file = tmp_path / "cluster.toml"
    file.write_text(capsys.readouterr().out)
    assert load(file).router.port == 9
    assert len(load(file).decode) == 2


def test_keygen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "key"
    assert main(["keygen", str(file)]) == 0
    read_key(file)
    assert main(["keygen", str(file)]) == 2
    assert "never overwritten" in capsys.readouterr().err


def test_the_command_line_starts_without_torch() -> None:
    program = (
        "import sys; from penstock.__main__ import main; main(['config']); print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE)
    *config, modules = ran.stdout.decode().splitlines()
    assert "[router]" in config, "the command did its work"
    assert "penstock.__main__" in modules.split() and "torch" not in modules.split()


def test_an_unusable_combination_is_a_config_error() -> None:
    with pytest.raises(ConfigError):
        config_of("--decode", "65")

"""The command line: a table of commands, each imported when it is called."""

import argparse
import difflib
import importlib
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from .protocol.config import ConfigError

Arguments = argparse.Namespace
PACKAGE = __package__ or "penstock"

ROLE_MODULES = {
    "router": "router.server",
    "prefill": "prefill.server",
    "decode": "decode.server",
    "aggregated": "decode.server",
}

# flag, the configuration's section and key, how to read it, help
SETTINGS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("--served-name", "cluster", "served_name", {"help": "model name in requests and answers"}),
    ("--key-file", "cluster", "key_file", {"help": "cluster key, needed beyond loopback"}),
    ("--host", "router", "host", {"help": "where HTTP listens (127.0.0.1)"}),
    ("--port", "router", "port", {"type": int, "help": "where HTTP listens (8000)"}),
    ("--api-key-file", "router", "api_key_file", {"help": "keys clients must show, one per line"}),
    (
        "--local-prefill-tokens",
        "router",
        "local_prefill_tokens",
        {"type": int, "help": "longest uncached remainder that decode prefills itself (512)"},
    ),
    ("--device", "worker", "device", {"help": "auto, cpu, cuda or cuda:N"}),
    ("--dtype", "worker", "dtype", {"help": "auto, bfloat16 or float32"}),
    ("--kernels", "worker", "kernels", {"help": "auto, native, triton or torch"}),
    ("--threads", "worker", "threads", {"type": int, "help": "per rank (half of the cores)"}),
    ("--ranks", "worker", "ranks", {"type": int, "help": "processes per worker (1)"}),
    ("--shards", "worker", "shards", {"type": int, "help": "pieces of the model (one per rank)"}),
    ("--pages", "worker", "pages", {"type": int, "help": "KV pages per worker"}),
    ("--kv-memory-mib", "worker", "kv_memory_mib", {"type": int, "help": "or what they may take"}),
    ("--max-batch", "worker", "max_batch", {"type": int, "help": "sequences per step (64)"}),
    ("--chunk-tokens", "worker", "chunk_tokens", {"type": int, "help": "prompt chunk (512)"}),
    (
        "--kv-checked",
        "worker",
        "kv_checked",
        {"action": "store_const", "const": True, "help": "pages travel with a digest"},
    ),
    ("--kv-transport", "worker", "kv_transport", {"help": "auto, nixl, tcp, zmq or shm"}),
]


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line with what would work."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [flag for flags in flags_of(self).values() for flag in flags]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], known, 1)
            self.error(f"unknown {unknown[0]}" + (f" (did you mean {near[0]}?)" if near else ""))
        return parsed


def flags_of(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """Every command with its flags and arguments; a test freezes them."""
    commands: dict[str, list[str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                commands[name] = [
                    flag
                    for one in command._actions
                    for flag in one.option_strings or [one.metavar or one.dest]
                    if flag not in ("-h", "--help")
                ]
    return commands


def build_parser() -> Parser:
    parser = Parser(prog="penstock", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[Arguments], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        added.set_defaults(run=run)
        return added

    _add_cluster_flags(command("serve", serve, "run a whole cluster on this machine"))
    _add_cluster_flags(command("config", show_config, "print the configuration serve would use"))
    for role in ROLE_MODULES:
        added = command(role, run_role, f"run one {role} process of a cluster")
        added.add_argument("--config", type=Path, required=True, metavar="FILE")
        added.add_argument("--name", required=True, help="its name in the configuration")
    added = command("keygen", keygen, "make the key of a cluster")
    added.add_argument("file", type=Path, metavar="FILE")
    _add_simulate_flags(command("simulate", simulate, "play a cluster under faults, from seeds"))
    added = command("bench", bench, "run a benchmark")
    added.add_argument("name", metavar="NAME", nargs="?", default="", help="none: list them")
    added.add_argument("rest", metavar="...", nargs=argparse.REMAINDER, help="its own arguments")
    return parser


def _add_simulate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--faults", action="store_true", required=True, help="the one kind there is"
    )
    parser.add_argument("--seeds", type=int, default=1000, metavar="N", help="schedules (1000)")
    parser.add_argument("--first-seed", type=int, default=0, metavar="N", help="the first one (0)")
    parser.add_argument("--seed", type=int, metavar="N", help="play one again, with its log")
    parser.add_argument("--level", type=int, choices=(0, 1, 2), help="how bad links are (mixed)")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="processes (one per core)")
    parser.add_argument("--stop", action="store_true", help="at the first violation")


def _add_cluster_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="a checkpoint's folder")
    parser.add_argument(
        "--model",
        action="append",
        dest="models",
        metavar="NAME=PATH",
        help="one of several models, each with workers of its own; repeat it",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="cluster.toml; flags override")
    parser.add_argument("--prefill", type=int, metavar="N", help="prefill workers per model (1)")
    parser.add_argument("--decode", type=int, metavar="N", help="decode workers per model (1)")
    parser.add_argument(
        "--aggregated",
        action="store_true",
        help="one worker per model that does both, and no hand-over",
    )
    for flag, _, key, options in SETTINGS:
        if "action" not in options:
            metavar = "N" if options.get("type") is int else key.rpartition("_")[2].upper()
            options = {"metavar": metavar, **options}
        parser.add_argument(flag, **options)


def cluster_config(arguments: Arguments) -> Any:
    """Command line over file over defaults."""
    from .deploy.ports import free_control_endpoint
    from .protocol.config import ROLES, load, numbered, workers_of

    overrides: dict[str, Any] = {"cluster": {}, "router": {}, "worker": {}, **_models(arguments)}
    names = [model["name"] for model in overrides.get("model", [])]
    for flag, section, key, _ in SETTINGS:
        value = getattr(arguments, flag.removeprefix("--").replace("-", "_"))
        if value is not None:
            overrides[section][key] = value
    if arguments.config is None:
        overrides["router"]["control"] = free_control_endpoint()
    counts = {"prefill": arguments.prefill, "decode": arguments.decode}
    asked = any(count is not None for count in counts.values())
    if arguments.aggregated and asked:
        raise ConfigError("--aggregated is one worker that does both; leave out --prefill/--decode")
    for name, count in counts.items():
        if count is not None and not 1 <= count <= 64:
            raise ConfigError(f"--{name} {count}: give 1 to 64, or --aggregated for one worker")
    if not asked and not arguments.aggregated and arguments.config is not None:
        config = load(arguments.config, overrides)
        if any(workers_of(config, role) for role in ROLES):
            return config
    overrides |= {"prefill": [], "decode": [], "aggregated": []}
    if arguments.aggregated:
        overrides["aggregated"] = numbered("aggregated", 1, names)
    else:
        for name, count in counts.items():
            overrides[name] = numbered(name, count or 1, names)  # type: ignore[arg-type]
    return load(arguments.config, overrides)


def _models(arguments: Arguments) -> dict[str, Any]:
    """The sections that say which models; where the command line names any, the file's are not."""
    if not arguments.models:
        one = arguments.model
        return {} if one is None else {"cluster": {"model": one}, "model": []}
    if arguments.model is not None:
        raise ConfigError(f"give {arguments.model} as --model NAME=PATH too, where there are more")
    if arguments.served_name is not None:
        raise ConfigError("--served-name names one model; with --model write NAME=PATH")
    models: list[dict[str, str]] = []
    for text in arguments.models:
        name, given, path = text.partition("=")
        if not given:
            name, path = Path(text).name, text
        if not name or not path:
            raise ConfigError(f"--model {text}: give NAME=PATH, or a PATH whose last part names it")
        models.append({"name": name, "path": path})
    return {"cluster": {"model": "", "served_name": ""}, "model": models}


def serve(arguments: Arguments) -> int:
    from .deploy.local import serve as run

    config = cluster_config(arguments)
    for model in config.served:
        if not (Path(model.path) / "config.json").is_file():
            raise ConfigError(
                f"no model at {model.path}; give a folder with config.json, "
                "tokenizer.json and safetensors weights"
            )
    if config.key_path is not None:
        from .protocol.clusterkey import read_key

        read_key(config.key_path)
    return run(config)


def show_config(arguments: Arguments) -> int:
    from .protocol.config import dump

    print(dump(cluster_config(arguments)), end="")
    return 0


def run_role(arguments: Arguments) -> int:
    """One process of a cluster. Whatever ends it is said to the supervisor in one sentence."""
    from .protocol.config import load
    from .protocol.lifeline import report

    told = report(arguments.name)  # first: from here on it cannot outlive its supervisor
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        config = load(arguments.config)
        if arguments.command == "router":
            _check_router_name(config.router.name, arguments.name)
        else:
            config = config.seen_by(config.worker(arguments.command, arguments.name))
        module = importlib.import_module(f"{PACKAGE}.{ROLE_MODULES[arguments.command]}")
        return module.main(config, arguments.name)
    except ConfigError as error:
        told.failed(str(error))
        return 2
    except Exception as error:
        logging.exception("%s ends", arguments.name)
        told.failed(f"{type(error).__name__}: {error}")
        return 1


def _check_router_name(configured: str, name: str) -> None:
    if configured != name:
        raise ConfigError(f"the router is named {configured!r} in the configuration, not {name!r}")


def keygen(arguments: Arguments) -> int:
    from .protocol.clusterkey import write_key

    write_key(arguments.file)
    print(f"{arguments.file}: name it as [cluster] key_file, on every machine of the cluster")
    return 0


def simulate(arguments: Arguments) -> int:
    from .simulation.report import simulate as run

    return run(arguments)


def bench(arguments: Arguments) -> int:
    """A benchmark is a file of bench/ with a function main(arguments) -> exit status."""
    folder = Path(__file__).resolve().parent / "bench"
    files = sorted(folder.glob("*.py"))
    names = [file.stem for file in files if "\ndef main(" in file.read_text()]
    if arguments.name not in names:
        problem = f"no benchmark {arguments.name!r}; " if arguments.name else ""
        print(f"penstock bench: {problem}there are: {', '.join(names) or 'none'}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"{PACKAGE}.bench.{arguments.name}")
    return module.main(arguments.rest)


def main(arguments: Sequence[str] | None = None) -> int:
    from .protocol.clusterkey import ClusterKeyError

    parsed = build_parser().parse_args(arguments)
    try:
        return parsed.run(parsed)
    except (ConfigError, ClusterKeyError) as error:
        print(f"penstock: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())

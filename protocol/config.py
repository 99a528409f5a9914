"""One cluster.toml for a whole cluster, read once and frozen.

    [cluster]       what all processes share
    [router]        the HTTP side and where workers report
    [[model]]       one table per model, where several are served: a name and a path
    [worker]        defaults of every worker
    [[prefill]] [[decode]] [[aggregated]]   one table per worker: a name, and what differs

The command line overrides the file and the file overrides the defaults. Whatever is wrong is one
ConfigError that names the key, where it stands, and what would work. Nothing here looks at the
machine but for its number of cores and its address: a model or a key is looked at by who uses it.
"""

import os
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from .addresses import AddressError, advertised_host, is_loopback, parse_endpoint
from .config_fields import (
    ConfigError,
    Count,
    Device,
    Name,
    Port,
    Positive,
    Seconds,
    convert,
    unknown,
)
from .messages import Role

LOCAL_PREFILL_TOKENS = 512  # uncached remainders up to this long are prefilled by decode itself
ROLES: tuple[Role, ...] = ("prefill", "decode", "aggregated")
DEMO_MODEL = Path(__file__).resolve().parent.parent / "models" / "demo" / "checkpoint"
DEMO_NAME = "penstock-demo"
COMMAND_LINE = "the command line"
LISTED = ("model", *ROLES)  # sections of which there may be several
PATHS = (("cluster", "model"), ("cluster", "key_file"), ("router", "api_key_file"))


class Cluster(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all processes share."""

    model: str = ""  # a folder with config.json and weights; "" = the demo checkpoint, or [[model]]
    served_name: str = ""  # "" = the folder's name
    key_file: str = ""  # needed as soon as one process listens beyond loopback
    routers: list[str] = []  # control endpoints workers report to; [] = the one of [router]


class Router(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The HTTP side, and where workers report to."""

    name: Name = "router"
    host: str = "127.0.0.1"
    port: Port = 8000
    control: str = "tcp://127.0.0.1:5570"  # where workers reach it
    control_bind: str = ""  # the address it listens at, where that is not control's host
    api_key_file: str = ""  # one key per line; "" = no key is asked for
    local_prefill_tokens: Count = LOCAL_PREFILL_TOKENS
    max_header_bytes: Annotated[int, Meta(ge=1024)] = 32 << 10
    max_body_bytes: Annotated[int, Meta(ge=1024)] = 16 << 20
    max_connections: Positive = 16384
    header_seconds: Seconds = 20.0
    body_seconds: Seconds = 60.0
    idle_seconds: Seconds = 75.0
    failover_seconds: Seconds = 15.0  # how long a request waits for a worker to appear
    max_attempts: Positive = 8
    request_seconds: Annotated[float, Meta(ge=0.0)] = 3600.0  # to a request's end; 0 = no limit
    drain_seconds: Seconds = 30.0


class Model(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of several models."""

    path: str = ""  # a folder with config.json and weights; each has one
    name: str = ""  # in requests and answers; "" = the folder's name


class Worker(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One worker, or in [worker] the defaults of all."""

    name: Name = "worker"
    host: str = "127.0.0.1"  # where it listens for its peers
    port: Port = 0  # 0 = any free one
    advertise: str = ""  # the address peers reach it at; "" = host, or the one the router sees
    device: Device = "auto"
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    kernels: Literal["auto", "native", "triton", "torch"] = "auto"
    threads: Count = 0  # 0 = half of the cores, whatever else runs on the machine
    ranks: Positive = 1  # processes that hold the model together; `threads` is of each
    shards: Count = 0  # pieces the model is cut into, part of its numeric class; 0 = one per rank
    page_slots: Annotated[int, Meta(ge=1, le=1024)] = 32
    pages: Count = 0  # 0 = what kv_memory_mib holds
    kv_memory_mib: Count = 0  # 0 = a share of what is free
    chunk_tokens: Positive = 512
    max_batch: Positive = 64
    kv_transport: Literal["auto", "nixl", "tcp", "zmq", "shm"] = "auto"
    kv_checked: bool = False  # pages travel with a digest of their bytes (host memory only)
    lease_seconds: Seconds = 10.0
    read_seconds: Seconds = 2.0  # a read of pages may take so long, and twice what is predicted
    beat_seconds: Annotated[float, Meta(gt=0.0, le=5.0)] = 0.25  # between two Status
    drain_seconds: Seconds = 30.0
    model: str = ""  # the name of the one it serves, where there are several


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole cluster, resolved: nothing in it is left to be derived."""

    cluster: Cluster
    router: Router
    model: list[Model] = []  # [] = the one of [cluster]
    prefill: list[Worker]
    decode: list[Worker]
    aggregated: list[Worker]

    @property
    def workers(self) -> dict[str, tuple[Role, Worker]]:
        """By name."""
        return {worker.name: (role, worker) for role in ROLES for worker in workers_of(self, role)}

    def worker(self, role: Role, name: str) -> Worker:
        """The worker of that role and name, for the process that is this worker: its address is
        found out on its own machine. Raises ConfigError naming those there are."""
        for worker in workers_of(self, role):
            if worker.name == name:
                return self._with_address(worker)
        names = ", ".join(worker.name for worker in workers_of(self, role)) or "none"
        raise ConfigError(f"no [[{role}]] worker is named {name!r}; there are: {names}")

    def _with_address(self, worker: Worker) -> Worker:
        try:
            reached = advertised_host(worker.host, worker.advertise, self.routers[0])
        except OSError as error:
            raise ConfigError(
                f"{worker.name}: no address that {self.routers[0]} could reach it at ({error}); "
                "give one as advertise"
            ) from None
        return replace(worker, advertise=reached)

    @property
    def routers(self) -> list[str]:
        """The control endpoints every worker reports to."""
        return self.cluster.routers or [self.router.control]

    @property
    def served(self) -> list[Model]:
        """All models; at least one."""
        return self.model or [Model(path=self.cluster.model, name=self.cluster.served_name)]

    @property
    def model_path(self) -> Path:
        """Where there is one model, as every worker sees it: see `seen_by`."""
        return Path(self.cluster.model)

    def seen_by(self, worker: Worker) -> "Config":
        """As the process of a worker reads it: its model is the one there is."""
        for model in self.model:
            if model.name == worker.model:
                cluster = replace(self.cluster, model=model.path, served_name=model.name)
                return replace(self, cluster=cluster, model=[])
        return self

    @property
    def key_path(self) -> Path | None:
        return Path(self.cluster.key_file) if self.cluster.key_file else None


def workers_of(config: Config, role: Role) -> list[Worker]:
    return {
        "prefill": config.prefill,
        "decode": config.decode,
        "aggregated": config.aggregated,
    }[role]


def load(file: Path | None, overrides: dict[str, Any] | None = None) -> Config:
    """Read a file (None: defaults alone), lay `overrides` over it (same shape), resolve, check."""
    document: dict[str, Any] = {}
    if file is not None:
        try:
            document = tomllib.loads(file.read_text())
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"configuration {file} cannot be read: {error}") from None
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{file} is no TOML: {error}") from None
    place = str(file) if file is not None else COMMAND_LINE
    base = file.resolve().parent if file is not None else Path.cwd()
    return _check(_resolve(_merge(document, overrides or {}, place, base), place), place)


def numbered(role: Role, count: int, models: Sequence[str] = ()) -> list[dict[str, Any]]:
    """`count` workers of a role (for each of `models`) that differ in nothing but their names."""
    of = [{"model": model} for model in models for _ in range(count)] or [{}] * count
    return [{"name": f"{role}-{number}", **fields} for number, fields in enumerate(of)]


def usable_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def dump(config: Config) -> str:
    """The resolved configuration as TOML that `load` reads back to the same."""
    tables = msgspec.to_builtins(config)
    lines: list[str] = []
    for section, content in tables.items():
        for table in content if isinstance(content, list) else [content]:
            lines.append(f"[[{section}]]" if isinstance(content, list) else f"[{section}]")
            # JSON text of strings, numbers and lists of strings is TOML text too.
            lines += [
                f"{key} = {msgspec.json.encode(value).decode()}" for key, value in table.items()
            ]
            lines.append("")
    return "\n".join(lines)


# --- from a document to a Config ------------------------------------------------------------------


def _merge(
    document: dict[str, Any], overrides: dict[str, Any], place: str, base: Path
) -> dict[str, Any]:
    known = [*Config.__struct_fields__, "worker"]
    for section, content in document.items():
        if section not in known:
            raise ConfigError(f"{place}: {unknown(section, known, 'a cluster has no section')}")
        listed = section in LISTED
        tables = content if listed and isinstance(content, list) else [content]
        if listed != isinstance(content, list) or not all(isinstance(t, dict) for t in tables):
            written = f"[[{section}]]" if listed else f"[{section}]"
            raise ConfigError(f"{place}: {section} must be written as {written}")
    merged = _rooted(document, base)
    overrides = _rooted(overrides, Path.cwd())
    for section, content in overrides.items():
        if section in LISTED:
            merged[section] = content
        else:
            merged[section] = {**merged.get(section, {}), **content}
    worker_overrides = overrides.get("worker", {})
    for role in ROLES:
        merged[role] = [{**table, **worker_overrides} for table in merged.get(role, [])]
    return merged


def _rooted(document: dict[str, Any], base: Path) -> dict[str, Any]:
    """Paths in a file are relative to the file, paths on the command line to where it is typed."""
    rooted = dict(document)
    for section, key in PATHS:
        value = rooted.get(section, {}).get(key)
        if isinstance(value, str) and value:
            rooted[section] = {**rooted[section], key: str(base / Path(value).expanduser())}
    if "model" in rooted:
        rooted["model"] = [
            {**table, "path": str(base / Path(table["path"]).expanduser())}
            if isinstance(table.get("path"), str) and table["path"]
            else table
            for table in rooted["model"]
        ]
    return rooted


def _resolve(document: dict[str, Any], place: str) -> Config:
    cluster = convert(document.get("cluster", {}), Cluster, "[cluster]", place)
    router = convert(document.get("router", {}), Router, "[router]", place)
    defaults = document.get("worker", {})
    if "name" in defaults:
        raise ConfigError(f"{place}: [worker] name: a name belongs in [[prefill]] or [[decode]]")
    convert(defaults, Worker, "[worker]", place)
    threads = max(1, usable_cores() // 2)
    workers: dict[str, list[Worker]] = {}
    for role in ROLES:
        workers[role] = []
        for number, table in enumerate(document[role]):
            resolved = {"name": f"{role}-{number}", **defaults, **table}
            resolved["threads"] = resolved.get("threads") or threads
            workers[role].append(convert(resolved, Worker, f"[[{role}]] {number}", place))
    models = [
        convert(table, Model, f"[[model]] {number}", place)
        for number, table in enumerate(document.get("model", []))
    ]
    for number, one in enumerate(models):
        if not one.path:
            raise ConfigError(
                f"{place}: [[model]] {number} has no path; name a checkpoint's folder"
            )
    if models:
        models = [replace(one, name=one.name or Path(one.path).name) for one in models]
        workers = {role: _with_models(found, models) for role, found in workers.items()}
    else:
        path = cluster.model or str(DEMO_MODEL)
        name = cluster.served_name or (DEMO_NAME if Path(path) == DEMO_MODEL else Path(path).name)
        cluster = replace(cluster, model=path, served_name=name)
    return Config(cluster=cluster, router=router, model=models, **workers)


def _with_models(workers: list[Worker], models: list[Model]) -> list[Worker]:
    """Where there is one model, a worker need not say that it serves it."""
    if len(models) > 1:
        return workers
    return [replace(one, model=one.model or models[0].name) for one in workers]


def _check(config: Config, place: str) -> Config:
    """What no single key can be blamed for."""
    names = [config.router.name]
    names += [worker.name for role in ROLES for worker in workers_of(config, role)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{place}: two processes are named {name!r}; give each its own name")
    _check_models(config, place)
    several = len(config.model) > 1
    for model in config.served:
        roles = {role for role, one in config.workers.values() if one.model in ("", model.name)}
        of = f" of model {model.name}" if several else ""
        if "prefill" in roles and "decode" not in roles:
            raise ConfigError(f"{place}: prefill workers{of} need at least one [[decode]] worker")
        if "decode" in roles and "prefill" not in roles:
            raise ConfigError(
                f"{place}: decode workers{of} need at least one [[prefill]] worker; "
                "for one worker that does both write [[aggregated]]"
            )
        if several and config.workers and not roles:
            raise ConfigError(f"{place}: no worker serves model {model.name}; give it one")
    for key, endpoint in _endpoints(config):
        try:
            parse_endpoint(endpoint)
        except AddressError as error:
            raise ConfigError(f"{place}: {key}: {error}") from None
    for key, host in _inner_hosts(config):
        if not config.cluster.key_file and not is_loopback(host):
            raise ConfigError(
                f"{place}: {key} is {host}, beyond loopback, and needs a cluster key: "
                "make one with `penstock keygen FILE` and name it as [cluster] key_file"
            )
    return config


def _check_models(config: Config, place: str) -> None:
    names = [model.name for model in config.served]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{place}: two models are named {name!r}; give each its own name")
    if config.model and (config.cluster.model or config.cluster.served_name):
        raise ConfigError(
            f"{place}: [cluster] model and served_name name the one model there is; "
            "where there are [[model]] tables, write it as one of them"
        )
    for role, worker in config.workers.values():
        if worker.model not in (names if config.model else ["", *names]):
            said = f"model = {worker.model!r}" if worker.model else "no model"
            raise ConfigError(
                f"{place}: [[{role}]] {worker.name} names {said}; there are: {', '.join(names)}"
            )


def _endpoints(config: Config) -> Iterator[tuple[str, str]]:
    yield "[router] control", config.router.control
    for endpoint in config.cluster.routers:
        yield "[cluster] routers", endpoint


def _inner_hosts(config: Config) -> Iterator[tuple[str, str]]:
    """Where processes of the cluster listen for each other."""
    for key, endpoint in _endpoints(config):
        yield key, parse_endpoint(endpoint)[0]
    if config.router.control_bind:
        yield "[router] control_bind", config.router.control_bind
    for role, worker in config.workers.values():
        yield f"[[{role}]] {worker.name}: host", worker.host

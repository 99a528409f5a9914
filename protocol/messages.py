"""Every message that crosses a process, and nothing else. No behaviour lives here.

One request, hop by hop (R router, P prefill worker, D decode worker):

    R -> P   Prefill        compute this prompt, hand it to that decode worker
    P -> R   Tokens         the first token (first byte out)
    P -> D   Handoff        the request, and where its blocks will appear
    P -> D   Published      more blocks are sealed; the last one carries the first tokens
    D -> P   Introduce / P -> D Agent    once per pair, before a first pull
    D -> P   Renew, Release the lease goes on, the lease ends
    D -> R   Tokens         one frame per step with every sequence's token
    R -> D   Prefill        with decode_at == "": prefill the (short) remainder and answer yourself
    R -> any Cancel         any -> R Failed, Status, Hello
    R -> any Inquire        what it heard nothing of;  any -> R Unknown, where it is not there

`model` and `cache_salt` are in every request from the first day. Ids are unique for ever:
a request id is drawn by its router; an attempt numbers one placement of one request; a lease id
is drawn by the holder; an incarnation is drawn when a process starts.
"""

from typing import Literal

from msgspec import Struct

REVISION = 3  # raised with every change of this file; processes of two revisions refuse each other

Role = Literal["prefill", "decode", "aggregated"]
FinishReason = Literal["", "stop", "length"]


class Peer(Struct, frozen=True, array_like=True):
    """Who speaks. `incarnation` differs each time a process starts, `endpoint` may repeat."""

    name: str
    incarnation: int
    endpoint: str  # where this peer receives, e.g. tcp://127.0.0.1:5557


class Sampling(Struct, frozen=True):
    """How tokens are drawn. Every field counts output from the request's prompt_length on."""

    seed: int  # 64 bit; the router draws one where the client sent none
    temperature: float = 1.0  # 0 = the most likely token, ties to the lowest id
    top_p: float = 1.0
    top_k: int = 0  # 0 = off
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    max_tokens: int = 16
    min_tokens: int = 0  # stop_token_ids cannot be drawn before
    stop_token_ids: tuple[int, ...] = ()  # the model's own end ids included, unless ignore_eos
    logprobs: int = -1  # -1 = none; k = the drawn token's and the k best alternatives'
    prompt_logprobs: int = -1  # the same for each prompt token


class TokenLogprobs(Struct, frozen=True, array_like=True):
    """Log-probability of one token and of the best alternatives (descending, ties by id)."""

    logprob: float
    top_ids: list[int] = []
    top_logprobs: list[float] = []


# --- the request's path forward ---------------------------------------------------------------


class Prefill(Struct, frozen=True, tag="prefill", array_like=True):
    """Compute `token_ids` and draw the next token for each choice.

    After a fail-over `token_ids` is the prompt and what was already emitted for that one choice,
    so `prompt_length` (the boundary between prompt and output) travels on its own.
    """

    request: int
    attempt: int
    router: Peer
    model: str
    cache_salt: str
    token_ids: list[int]
    prompt_length: int
    choices: list[int]  # indices among the request's n
    sampling: Sampling
    decode_at: str = ""  # endpoint of the decode worker; "" = answer here


class Handoff(Struct, frozen=True, tag="handoff", array_like=True):
    """Holder to reader: take over this request; its blocks follow in Published."""

    prefill: Prefill
    lease: int
    lease_seconds: float  # the lease ends this long after the last Renew
    cached_tokens: int  # of the prompt, found in the holder's cache


class FirstTokens(Struct, frozen=True, array_like=True):
    """What the holder drew at the end of the prompt. Choices with finish "" go on.

    The reader says it all to the router again: the holder may die before its own word arrives.
    """

    choices: list[int]
    token_ids: list[int]
    finish: list[FinishReason]
    logprobs: list["TokenLogprobs | None"]


class Published(Struct, frozen=True, tag="published", array_like=True):
    """Blocks from first_block on of the lease are sealed and may be read.

    Each column is one number or hash per block, packed: a long prompt has ten thousand blocks.
    A block read counts only if, after its data is complete, its page's generation still is the
    one named here. `hashes` are what the holder's pool sealed each page as: they chain
    model, numeric class, tenant salt and every token before, so a page of another request or
    tenant is refused before it is read. In checked mode `digests` are the
    xxh3-64 of each page's bytes. `first_tokens` comes with the last block and ends the publication.
    """

    lease: int
    first_block: int
    pages: bytes  # [blocks] int32, little endian
    generations: bytes  # [blocks] uint64, little endian
    hashes: bytes  # [blocks] of blockhash.DIGEST_BYTES each
    digests: bytes = b""  # checked mode: [blocks] uint64, little endian
    first_tokens: FirstTokens | None = None


# --- between holder and reader ----------------------------------------------------------------


class Compatibility(Struct, frozen=True):
    """What two workers must share before one may read the other's pages."""

    revision: int
    model: str  # digest of config and weights
    numeric_class: str
    dtype: str
    layout: str  # e.g. "PLCGSH 6x2x2x32x64"
    page_bytes: int
    plane: str
    checked: bool = False  # pages travel with a digest of their bytes


class Introduce(Struct, frozen=True, tag="introduce", array_like=True):
    """Reader to holder: who I am; send me your agent's metadata."""

    compatibility: Compatibility


class Agent(Struct, frozen=True, tag="agent", array_like=True):
    """Holder to reader: what the plane needs to read my pages (only after a match)."""

    compatibility: Compatibility
    metadata: bytes


class Refused(Struct, frozen=True, tag="refused", array_like=True):
    """Holder to reader: we do not fit; `reason` names the field and both values."""

    reason: str


class Renew(Struct, frozen=True, tag="renew", array_like=True):
    """Reader to holder: these leases are wanted still; blocks known so far of each."""

    leases: list[int]
    known_blocks: list[int]


class Release(Struct, frozen=True, tag="release", array_like=True):
    """Reader to holder: the lease ends, all its blocks were read or are not wanted any more."""

    lease: int


class LeaseEnded(Struct, frozen=True, tag="lease_ended", array_like=True):
    """Holder to reader: no such lease any more (expired, cancelled); stop reading."""

    lease: int
    reason: str


# --- back to the router -----------------------------------------------------------------------


class WorkerState(Struct, frozen=True, array_like=True):
    """The worker's load as of this frame; rides in every Tokens and Status."""

    running: int = 0  # sequences in the batch
    waiting: int = 0  # requests not started or not admitted
    waiting_tokens: int = 0  # prompt tokens not computed yet
    free_pages: int = 0  # free or evictable
    held_pages: int = 0  # held by a sequence or a lease
    quarantined_pages: int = 0
    leases: int = 0
    pulling: int = 0
    step_seconds: float = 0.0  # recent mean
    tokens_per_second: float = 0.0  # recent prefill rate, 0 = unknown


class Tokens(Struct, frozen=True, tag="tokens", array_like=True):
    """One step's tokens for one router, as parallel arrays.

    `positions` are absolute (the prompt's first token is 0). `finish` is "" while going on.
    `logprobs` is empty or as long as the rest. `cached` and `prompt_logprobs` are given once, by
    the worker that computed the prompt.
    """

    state: WorkerState
    requests: list[int]
    attempts: list[int]
    choices: list[int]
    positions: list[int]
    token_ids: list[int]
    finish: list[FinishReason]
    logprobs: list[TokenLogprobs | None] = []
    firsts: list["PromptReport"] = []


class PromptReport(Struct, frozen=True, array_like=True):
    """What became known when a prompt was computed; times in seconds on the worker's clock."""

    request: int
    attempt: int
    cached_tokens: int
    queue_seconds: float
    prefill_seconds: float
    prompt_logprobs: list[TokenLogprobs | None] = []


class Admitted(Struct, frozen=True, tag="admitted", array_like=True):
    """Decode to router: a hand-over is complete; its stages for the records (seconds)."""

    request: int
    attempt: int
    transfer_seconds: float  # from the last publication: earlier blocks cost nobody time
    wait_seconds: float  # for pages, before the first pull
    pulled_pages: int
    skipped_pages: int  # held here already
    pulled_bytes: int
    cached_tokens: int  # of the prompt, at the holder; should its own report be lost with it


class Failed(Struct, frozen=True, tag="failed", array_like=True):
    """This attempt ends here without its tokens. `retryable`: another worker may do better."""

    request: int
    attempt: int
    reason: str
    retryable: bool


class Cancel(Struct, frozen=True, tag="cancel", array_like=True):
    """Router to workers: forget this attempt (`choice` >= 0: only that choice)."""

    request: int
    attempt: int
    choice: int = -1


class Inquire(Struct, frozen=True, tag="inquire", array_like=True):
    """Router to a worker of placements it heard nothing of for a while: do you have these?

    Delivery is at most once, so any word may be lost; this makes the loss of each one visible.
    """

    requests: list[int]
    attempts: list[int]
    choices: list[int]


class Unknown(Struct, frozen=True, tag="unknown", array_like=True):
    """Worker to router: of what you inquired, these are not here (any more, or never were)."""

    requests: list[int]
    attempts: list[int]
    choices: list[int]


# --- the fleet --------------------------------------------------------------------------------


class WorkerDescription(Struct, frozen=True):
    """What a worker is, said once per meeting."""

    role: Role
    model: str  # name as served
    compatibility: Compatibility
    page_slots: int
    pages: int
    context_length: int
    kernels: str
    device: str
    pid: int
    transport: str = ""  # what the plane really uses, for people


class Hello(Struct, frozen=True, tag="hello", array_like=True):
    """Worker to router, on every new connection; `cached` is the whole prefix cache."""

    description: WorkerDescription
    state: WorkerState
    cached: list[bytes]


class Status(Struct, frozen=True, tag="status", array_like=True):
    """Worker to router, several times a second: load, cache changes, health, counters.

    `stuck` names the part that makes no progress ("" when well), `transport` what the plane really
    uses, which some know only after a first connection. A router that does not know the sender
    answers Identify.
    """

    state: WorkerState
    cached_added: list[bytes]
    cached_removed: list[bytes]
    counters: dict[str, float]
    stuck: str = ""
    transport: str = ""  # "" = as described in the Hello


class Identify(Struct, frozen=True, tag="identify", array_like=True):
    """Router to worker: I do not know you (any more); say Hello."""


class Drain(Struct, frozen=True, tag="drain", array_like=True):
    """Worker to router: I am leaving; what I had is yours to place again."""


Message = (
    Prefill
    | Handoff
    | Published
    | Introduce
    | Agent
    | Refused
    | Renew
    | Release
    | LeaseEnded
    | Tokens
    | Admitted
    | Failed
    | Cancel
    | Inquire
    | Unknown
    | Hello
    | Status
    | Identify
    | Drain
)

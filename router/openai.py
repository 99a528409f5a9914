"""The OpenAI endpoints: a body to submissions, tokens to an answer. Knows no worker, no socket."""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import msgspec

from ..protocol.messages import Sampling
from .answer import Service
from .answer_stream import StreamedAnswer
from .answer_whole import WholeAnswer
from .http_exchange import JSON, Exchange, HttpRequest
from .openai_error import ApiError, quote
from .openai_facts import Facts
from .openai_prompt import (
    Prompt,
    chat_prompt,
    chat_size,
    text_prompts,
    text_size,
)
from .openai_sampling import (
    MOST_SEQUENCES,
    Stops,
    check_format,
    choices_of,
    fit,
    in_vocabulary,
    priority_of,
    salt_of,
    sampling_of,
    stops_of,
)
from .openai_tokenise import Tokenising
from .request import Submission
from .schema import CHAT, DETOKENIZE, TEXT, TOKENIZE, ChatBody, Generation, TextBody
from .sse import Form

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/-]{1,128}")


@dataclass(frozen=True, slots=True)
class Served:
    """One model: what must be known of it, and what its answers need."""

    facts: Facts
    service: Service


@dataclass(frozen=True, slots=True)
class Plan:
    """A valid body but for its prompts."""

    served: Served
    body: Generation
    form: Form
    sampling: Sampling
    stops: Stops
    choices: int
    salt: str
    priority: int
    headers: bytes


class OpenAi:
    """The handlers. `salt` gives what keeps this caller's cached prefixes from other callers."""

    def __init__(
        self,
        models: Sequence[Served],
        tokenising: Tokenising,
        salt: Callable[[HttpRequest], str] = lambda request: "",
    ):
        self.models_served = tuple(models)
        self.by_name = {name: one for one in models for name in one.facts.models}
        self.tokenising = tokenising
        self.salt = salt

    # --- /v1/chat/completions, /v1/completions -------------------------------------------------

    def chat(self, request: HttpRequest, exchange: Exchange) -> None:
        body = CHAT.parse(request.body)
        served = self._served(body.model)
        plan = self._plan(request, body, served)
        tokenizer, facts = served.service.tokenizer, served.facts
        self.tokenising.run(
            exchange,
            chat_size(body),
            lambda: [chat_prompt(body, tokenizer, facts)],
            lambda prompts: self._begin(exchange, plan, prompts),
        )

    def completions(self, request: HttpRequest, exchange: Exchange) -> None:
        body = TEXT.parse(request.body)
        served = self._served(body.model)
        plan = self._plan(request, body, served)
        tokenizer, facts = served.service.tokenizer, served.facts
        self.tokenising.run(
            exchange,
            text_size(body),
            lambda: text_prompts(body, tokenizer, facts),
            lambda prompts: self._begin(exchange, plan, prompts),
        )

    def _plan(self, request: HttpRequest, body: Generation, served: Served) -> Plan:
        facts = served.facts
        check_format(body)
        sampling = sampling_of(body, facts)
        chat = isinstance(body, ChatBody)
        options = body.stream_options
        form = Form(
            id=("chatcmpl-" if chat else "cmpl-") + os.urandom(12).hex(),
            model=body.model or facts.models[0],
            created=int(time.time()),
            chat=chat,
            stream=bool(body.stream),
            usage=options is not None and bool(options.include_usage),
            running_usage=options is not None and bool(options.continuous_usage_stats),
            logprobs=sampling.logprobs >= 0,
            echo=isinstance(body, TextBody) and bool(body.echo),
            token_ids=bool(body.return_token_ids),
            prompt_logprobs=body.prompt_logprobs is not None,
            skip_special_tokens=body.skip_special_tokens is not False,
            eos_ids=facts.eos_ids,
        )
        salt = salt_of(body)
        return Plan(
            served=served,
            body=body,
            form=form,
            sampling=sampling,
            stops=stops_of(body),
            choices=choices_of(body),
            salt=self.salt(request) + salt,
            priority=priority_of(body),
            headers=_request_id(request, form.id),
        )

    def _begin(self, exchange: Exchange, plan: Plan, prompts: Sequence[Prompt]) -> None:
        if len(prompts) * plan.choices > MOST_SEQUENCES:
            raise ApiError(
                f"{len(prompts)} prompts with n {plan.choices} are more than "
                f"{MOST_SEQUENCES} answers; send several requests",
                "prompt",
            )
        facts = plan.served.facts
        submissions = [
            Submission(
                model=facts.models[0],
                token_ids=prompt.token_ids,
                choices=plan.choices,
                sampling=fit(plan.sampling, plan.body, len(prompt.token_ids), facts),
                cache_salt=plan.salt,
                priority=plan.priority,
            )
            for prompt in prompts
        ]
        kind = StreamedAnswer if plan.form.stream else WholeAnswer
        answer = kind(exchange, plan.form, plan.served.service, plan.headers)
        answer.begin(prompts, submissions, plan.stops)

    # --- the small endpoints -------------------------------------------------------------------

    def models(self, request: HttpRequest, exchange: Exchange) -> None:
        listed = [_model_card(name, one.facts) for name, one in self.by_name.items()]
        _send(exchange, {"object": "list", "data": listed})

    def model(self, request: HttpRequest, exchange: Exchange) -> None:
        name = unquote(request.path.removeprefix("/v1/models/"))
        _send(exchange, _model_card(name, self._served(name).facts))

    def tokenize(self, request: HttpRequest, exchange: Exchange) -> None:
        body = TOKENIZE.parse(request.body)
        served = self._served(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError("send either prompt or messages", "prompt")
        tokenizer, facts = served.service.tokenizer, served.facts

        def work() -> list[int]:
            if body.prompt is None:
                return chat_prompt(body, tokenizer, facts).token_ids
            return tokenizer.encode(body.prompt, body.add_special_tokens is not False)

        def then(token_ids: list[int]) -> None:
            fields: dict[str, Any] = {
                "count": len(token_ids),
                "max_model_len": facts.context_length,
            }
            fields["tokens"] = token_ids
            if body.return_token_strs:
                fields["token_strs"] = [tokenizer.token_text(one) for one in token_ids]
            _send(exchange, fields)

        size = chat_size(body) if body.prompt is None else len(body.prompt)
        self.tokenising.run(exchange, size, work, then)

    def detokenize(self, request: HttpRequest, exchange: Exchange) -> None:
        body = DETOKENIZE.parse(request.body)
        served = self._served(body.model)
        in_vocabulary("tokens", body.tokens, served.facts)
        tokenizer = served.service.tokenizer
        self.tokenising.run(
            exchange,
            len(body.tokens),
            lambda: tokenizer.decode(body.tokens, skip_special_tokens=False),
            lambda text: _send(exchange, {"prompt": text}),
        )

    def _served(self, name: str | None) -> Served:
        if name is None and len(self.models_served) == 1:
            return self.models_served[0]
        known = ", ".join(self.by_name)
        if name is None:
            raise ApiError(f"model is missing; several are served: {known}", "model")
        if name not in self.by_name:
            raise ApiError(
                f"the model {quote(name)} does not exist here; these do: {known}",
                "model",
                404,
                "model_not_found",
            )
        return self.by_name[name]


def _model_card(name: str, facts: Facts) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": facts.created,
        "owned_by": "penstock",
        "root": facts.models[0],
        "max_model_len": facts.context_length,
    }


def _send(exchange: Exchange, fields: dict[str, Any]) -> None:
    exchange.respond(200, msgspec.json.encode(fields), JSON)


def _request_id(request: HttpRequest, own: str) -> bytes:
    """The client's id for the request if it is fit for a header, else ours."""
    given = request.headers.get(b"x-request-id", b"")
    return b"X-Request-Id: %b\r\n" % (given if _REQUEST_ID.fullmatch(given) else own.encode())

"""The clients of a schedule: what they ask, and how they change their minds."""

from collections import Counter

from ..protocol.messages import Sampling
from ..router.request import Refusal, Submission
from .client import CheckedClient, Question
from .engine import true_tokens
from .memory import SLOTS
from .world import World

MOST_CLIENTS = 40


class Traffic:
    """Asks questions of the world's router. `counts`: asked, refused, cancelled."""

    def __init__(self, world: World):
        self._world, self._rng = world, world.chance.rng
        self.counts: Counter[str] = Counter()

    def ask(self) -> None:
        world = self._world
        if len(world.clients) >= MOST_CLIENTS or "router" in world.hung:
            return
        client = CheckedClient(self._question(), world.now)
        if self._rng.random() < 0.1:
            self._let_answer(client, self._rng.randint(1, 4), self._rng.random() < 0.5)
        asked = client.question
        submission = Submission("model", asked.prompt, asked.choices, asked.sampling, asked.salt)
        self.counts["asked"] += 1
        try:
            client.request = world.flow.submit(submission, client)
        except Refusal:
            self.counts["refused"] += 1
            return
        world.clients.append(client)
        world.chance.note(f"SUBMIT {client.request} {asked}")

    def cancel(self, client: CheckedClient) -> None:
        client.over = True
        self.counts["cancelled"] += 1
        self._world.flow.cancel(client.request)

    def stop(self, client: CheckedClient, choice: int) -> None:
        if not client.finish[choice]:
            client.stopped.add(choice)
            client.finish[choice] = "string"
            self._world.flow.stop_choice(client.request, choice)

    def _let_answer(self, client: CheckedClient, count: int, stops: bool) -> None:
        """After so many tokens of a choice it stops that choice, or cancels, within the call."""

        def answer(choice: int) -> None:
            if len(client.tokens[choice]) == count and not client.finish[choice]:
                if stops:
                    self.stop(client, choice)
                else:
                    self.cancel(client)

        client.after_token = answer

    def _question(self) -> Question:
        rng, most = self._rng, self._world.conditions.pages * SLOTS
        length = min(most, rng.choice([1, 3, 4, 5, 8, 13, 20, 27, 60]))
        if rng.random() < 0.05:
            length = most - rng.randint(0, 2)
        first = rng.choice([0, 0, 100])
        prompt = list(range(first, first + length))
        if rng.random() < 0.3:
            prompt[-1] = rng.randint(500, 900)
        choices, seed = rng.choice([1, 1, 1, 2, 3, 5]), rng.randint(0, 3)
        stops: tuple[int, ...] = ()
        if rng.random() < 0.25:
            stops = (true_tokens(prompt, seed, rng.randrange(choices), 6)[rng.choice([0, 0, 3])],)
        sampling = Sampling(
            seed,
            max_tokens=rng.choice([0, 1, 2, 5, 12, 40]),
            stop_token_ids=stops,
            logprobs=1 if rng.random() < 0.3 else -1,
            prompt_logprobs=1 if rng.random() < 0.15 else -1,
        )
        return Question(prompt, choices, sampling, rng.choice(["", "", "b"]))

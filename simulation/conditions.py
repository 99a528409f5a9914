"""What a schedule is like: its workers, their memory and times, drawn once from its seed."""

from dataclasses import dataclass

from ..kvtransfer.moves import Moves
from ..protocol.messages import Compatibility, Role
from .chance import Chance
from .worker import Shape

NEVER = 10**9  # seconds or attempts

LAYOUTS: list[dict[Role, int]] = [
    {"prefill": 1, "decode": 1},
    {"prefill": 1, "decode": 1},
    {"prefill": 1, "decode": 1},
    {"prefill": 2, "decode": 2},
    {"prefill": 1, "decode": 2},
    {"prefill": 2, "decode": 1},
    {"aggregated": 1},
    {"aggregated": 2},
    {"prefill": 1, "decode": 1, "aggregated": 1},
]


@dataclass(frozen=True, slots=True)
class Conditions:
    """Times in seconds. A `patient` schedule gives no request up, so none of them may fail."""

    layout: dict[Role, int]
    pages: int  # per worker
    chunk: int  # tokens
    local: int  # longest remainder that decode prefills itself
    checked: bool
    patient: bool
    failover: float
    attempts: int
    deadline: float  # 0 = none
    inquire: float
    lease: float
    read: float
    waiting: float
    turn_tokens: int  # what the router places again in one turn; 1 = one step

    @staticmethod
    def draw(chance: Chance) -> "Conditions":
        rng = chance.rng
        patient = rng.random() < 0.5
        return Conditions(
            layout=rng.choice(LAYOUTS),
            pages=rng.choice([8, 12, 16, 24, 40, 64]),
            chunk=rng.choice([1, 4, 8, 32, 1000]),
            local=rng.choice([0, 0, 0, 8, 10**6]),
            checked=rng.random() < 0.3,
            patient=patient,
            failover=NEVER if patient else rng.choice([1.0, 15.0]),
            attempts=NEVER if patient else rng.choice([2, 8]),
            deadline=0.0 if patient else rng.choice([2.0, 20.0, 120.0]),
            inquire=NEVER if chance.level < 2 and patient else rng.choice([0.5, 2.0, 5.0]),
            lease=rng.choice([1.0, 4.0, 10.0]),
            read=rng.choice([0.3, 2.0, 10.0]),
            waiting=rng.choice([0.5, 5.0, 60.0]),
            turn_tokens=(1, 5000, 20_000)[chance.seed % 3],
        )

    def shape(self, role: Role, compatibility: Compatibility, moves: Moves) -> Shape:
        renew = self.lease / 4
        times = (self.lease, renew, self.read, self.waiting)
        return Shape(role, self.chunk, compatibility, *times, moves)

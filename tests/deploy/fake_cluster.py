"""The real supervisor over fake roles: arguments are the names of workers, PORT is HTTP's."""

import os
import sys
from pathlib import Path

from penstock.deploy.local import serve
from penstock.deploy.ports import free_control_endpoint
from penstock.protocol.config import load

ROLE = str(Path(__file__).with_name("fake_role.py"))


def command(role: str, file: Path, name: str) -> list[str]:
    return [sys.executable, ROLE, role, str(file), name]


config = load(
    None,
    {
        "router": {"port": int(os.environ["PORT"]), "control": free_control_endpoint()},
        "aggregated": [{"name": name} for name in sys.argv[1:]],
    },
)
sys.exit(serve(config, command, serving=lambda config: True))

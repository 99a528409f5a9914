"""What tests of faults between real processes share: one nursery, and a scene per plane."""

from collections.abc import Callable, Iterator

import pytest

from penstock.bench.breaking.parts import ACROSS_HOSTS, PLANES, SMALL_PAGES
from penstock.bench.breaking.process import Nursery
from penstock.bench.breaking.rounds import Scene
from support.fault_planes import needs_nixl


def with_marks(planes: tuple[str, ...]) -> list:
    return [pytest.param(p, marks=needs_nixl) if p.startswith("nixl") else p for p in planes]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`plane`: every plane; `way`: small pages too; `remote_plane`: those that cross hosts."""
    ways = (*PLANES, *SMALL_PAGES)
    for name, planes in (("plane", PLANES), ("way", ways), ("remote_plane", ACROSS_HOSTS)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, with_marks(planes))


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def scene_of(nursery: Nursery) -> Iterator[Callable[..., Scene]]:
    """Makes scenes, and afterwards ends all their processes."""
    scenes: list[Scene] = []

    def make(plane: str, **settings) -> Scene:
        scenes.append(Scene(nursery, plane, **settings))
        return scenes[-1]

    yield make
    for scene in scenes:
        scene.close()

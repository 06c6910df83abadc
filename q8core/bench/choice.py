"""Which contenders a run has."""

from __future__ import annotations

from q8core.bench.contender import CONTENDERS, FEW_BITS
from q8core.bench.contenders import missing_engines
from q8core.bench.peers.registry import PEER_NAMES, check_packages
from q8core.errors import InputError


def choose_contenders(names: tuple[str, ...], *, peers: bool) -> tuple[str, ...]:
    """Return the contenders of a run, in a fixed order.

    Args:
        names: contenders, engines of `FEW_BITS` or peers; if empty, all of `CONTENDERS` that have a kernel here.
        peers: whether to add all peers.

    Raises:
        InputError: for an unknown name, or a peer whose packages are not installed.
    """
    known = (*CONTENDERS, *FEW_BITS, *PEER_NAMES)
    for name in names:
        if name not in known:
            raise InputError(f"engine is {name!r}; allowed: {', '.join(known)}")
    ours = names or tuple(name for name in CONTENDERS if name not in missing_engines())
    wanted = {*ours, *(PEER_NAMES if peers else ())}
    chosen = tuple(name for name in known if name in wanted)
    check_packages(tuple(name for name in chosen if name in PEER_NAMES))
    return chosen

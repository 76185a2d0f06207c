"""The audit log as C2SP tlog-tiles serves it, and proofs as JSON."""

from __future__ import annotations

from keypeer.wire.messages import ConsistencyProof, InclusionProof, LogKeys
from keypeer.wire.tlog.merkle import TILE_WIDTH
from keypeer.wire.tlog.tiles import LEVEL_MAX, Tile, parse_index
from kms.errors import NotFound
from kms.flows import checkpoints, log
from kms.web.routing import AUDITOR, Call, Raw, Route

_LOG_MAX = 10**18 - 1  # entries; any number of 18 digits
_TEXT = "text/plain; charset=utf-8"
_BYTES = "application/octet-stream"
_FOREVER = "private, max-age=31536000, immutable"  # full tiles never change; private, for they are auditors' alone


async def _checkpoint(call: Call) -> Raw:
    wanted = call.number("cosigned", 0, 0, 1)
    return Raw((await checkpoints.current(call.ctx, cosigned=bool(wanted))).encode())


async def _keys(call: Call) -> LogKeys:
    return await checkpoints.keys(call.ctx)


async def _tile(call: Call) -> Raw:
    level = call.path["level"]
    if not (level.isascii() and level.isdigit() and str(int(level[:3])) == level and int(level) <= LEVEL_MAX):
        raise NotFound("log.no_tile", f"there is no level {level[:16]!r} of tiles", hint="C2SP tlog-tiles")
    return await _read(call, int(level))


async def _bundle(call: Call) -> Raw:
    return await _read(call, None)


async def _read(call: Call, level: int | None) -> Raw:
    index, width = parse_index(call.path["index"])
    body = await log.tile(call.ctx, Tile(level, index, width))
    return Raw(body, _FOREVER if width == TILE_WIDTH else "no-store")


async def _inclusion(call: Call) -> InclusionProof:
    return await log.inclusion(call.ctx, call.number("sequence", 0, 0, _LOG_MAX), _size(call, "size"))


async def _consistency(call: Call) -> ConsistencyProof:
    return await log.consistency(call.ctx, call.number("from", 0, 0, _LOG_MAX), _size(call, "to"))


def _size(call: Call, parameter: str) -> int | None:
    return call.number(parameter, 0, 0, _LOG_MAX) if parameter in call.query else None


_SIZE = "entries that the proof is for; all unless told"

ROUTES = (
    Route(
        "GET",
        "/v1/log/checkpoint",
        "The audit log's signed head (C2SP tlog-checkpoint)",
        AUDITOR,
        _checkpoint,
        raw=_TEXT,
        query={"cosigned": "1: the newest that witnesses cosigned"},
    ),
    Route("GET", "/v1/log/key", "What verifies checkpoints", AUDITOR, _keys, answer=LogKeys),
    Route(
        "GET",
        "/v1/log/tile/entries/{index}",
        "256 entries, or a partial bundle (C2SP tlog-tiles)",
        AUDITOR,
        _bundle,
        raw=_BYTES,
        rest="index",
    ),
    Route(
        "GET",
        "/v1/log/tile/{level}/{index}",
        "256 hashes, or a partial tile (C2SP tlog-tiles)",
        AUDITOR,
        _tile,
        raw=_BYTES,
        rest="index",
    ),
    Route(
        "GET",
        "/v1/log/inclusion",
        "That an entry is in the log (RFC 6962)",
        AUDITOR,
        _inclusion,
        answer=InclusionProof,
        query={"sequence": "the entry's number, from 0", "size": _SIZE},
    ),
    Route(
        "GET",
        "/v1/log/consistency",
        "That the log only grew (RFC 6962)",
        AUDITOR,
        _consistency,
        answer=ConsistencyProof,
        query={"from": "the smaller size", "to": _SIZE},
    ),
)

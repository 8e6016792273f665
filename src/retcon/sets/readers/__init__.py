"""One reader a format, found by the fields of a record; the order decides where two could read one."""

from collections.abc import Mapping
from typing import Any

from retcon.sets.readers import counterfact, knowedit, lume, mend, mquake, ours, pararel
from retcon.sets.readers.base import Item, Reader, Request, Row

__all__ = ["READERS", "Item", "Reader", "Request", "Row", "recognised"]

READERS: dict[str, Reader] = {
    reader.name: reader
    for reader in (
        counterfact.READER,
        mquake.READER,
        knowedit.READER,
        mend.READER,
        lume.READER,
        pararel.READER,
        ours.CASES,
        ours.QUESTIONS,
    )
}


def recognised(record: Mapping[str, Any]) -> Reader | None:
    """The reader of a record's format, None where no reader knows it."""
    return next((reader for reader in READERS.values() if reader.claims(record)), None)

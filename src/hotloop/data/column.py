"""One leaf of a data set's batches, for all of its samples."""

from __future__ import annotations

import torch

from hotloop.data.declined import Declined
from hotloop.data.encoding import AsIs, Encoding, Table, choose_encodings


class Column:
    """One leaf of the batches, for all samples: ``(n, ...)``."""

    def __init__(self, num_rows: int, first_rows: torch.Tensor) -> None:
        self.shape, self.dtype = first_rows.shape[1:], first_rows.dtype
        self._encodings = choose_encodings(first_rows)
        self.encoding: Encoding = self._encodings.pop(0)
        self.codes = torch.empty((num_rows, *self.shape), dtype=self.encoding.dtype)
        self._num_filled = 0

    @classmethod
    def of_tensor(cls, tensor: torch.Tensor, device: torch.device) -> Column:
        """Return a column that is a whole tensor; on its own device it is not copied."""
        column = cls(0, tensor[:0])
        column.encoding = AsIs(tensor.dtype)
        column.codes = tensor.to(device)
        return column

    def append(self, rows: torch.Tensor) -> None:
        """Add rows behind those that are there.

        Raises:
            Declined: they differ in shape or dtype.
        """
        if rows.shape[1:] != self.shape or rows.dtype != self.dtype:
            raise Declined("its samples differ in shape or dtype")
        codes = self.encoding.encode(rows)
        while codes is None:
            self._widen(rows)
            codes = self.encoding.encode(rows)
        self.codes[self._num_filled : self._num_filled + len(rows)] = codes
        self._num_filled += len(rows)

    def gather(self, indices: torch.Tensor) -> torch.Tensor:
        """Return the rows at ``indices`` (int64 (batch,), on the column's device)."""
        return self.encoding.decode(self.codes.index_select(0, indices))

    @property
    def num_bytes(self) -> int:
        """Memory of the column."""
        return self.codes.numel() * self.codes.element_size()

    def _widen(self, rows: torch.Tensor) -> None:
        """Go on with the next encoding that also holds all rows so far."""
        filled = self.encoding.decode(self.codes[: self._num_filled])
        if isinstance(self.encoding, Table):
            extended = self.encoding.extended(rows)
            if extended is not None and extended.encode(rows) is not None:
                self._encodings.insert(0, extended)
        while True:
            self.encoding = self._encodings.pop(0)  # the last one holds anything
            codes = self.encoding.encode(filled)
            if codes is not None:
                break
        wider = torch.empty((len(self.codes), *self.shape), dtype=self.encoding.dtype)
        wider[: self._num_filled] = codes
        self.codes = wider

"""A byte that changed on its way is found before anything is written."""

import zipfile

import pytest

from tests.weights.published_files import FIRST, checkpoint, save
from vjepa_fast.errors import UserError
from vjepa_fast.exchange.import_weights import import_weights
from vjepa_fast.weights.open_file import open_weights


@pytest.mark.parametrize("which", [0, -1])
def test_a_changed_byte(which, tmp_path):
    path = save(checkpoint(), tmp_path / "a.pth.tar")
    with zipfile.ZipFile(path) as file:
        entry = [e for e in file.infolist() if "/data/" in e.filename and e.file_size][which]
    raw = bytearray(path.read_bytes())
    start = entry.header_offset + 30 + int.from_bytes(raw[entry.header_offset + 28 :][:2], "little")
    start += len(entry.filename.encode())  # of the data, after the header, the name and the rest
    raw[start] ^= 1
    path.write_bytes(raw)
    open_weights(path, **FIRST)  # nothing else looks at the checksums
    with pytest.raises(UserError, match=r"damaged file \(the bytes of data/\d+ differ from their"):
        import_weights(path, tmp_path / "run", **FIRST)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.pth.tar"]

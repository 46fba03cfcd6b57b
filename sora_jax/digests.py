"""What tells one file from another: checksums of all of it, or of enough of its weights."""

import hashlib
import json
import pathlib

# Of a tensor that is sampled: pieces at equal distances, the last one at its end.
_PIECES, _PIECE = 128, 4096


def file_sha256(file: pathlib.Path | str) -> str:
    """Checksum of all bytes of a file, in hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def weights_sha256(file: pathlib.Path | str) -> str:
    """Checksum of a safetensors file's size, header and pieces of every tensor, in digits.

    A tensor of up to 512 KiB counts whole, of a larger one 128 pieces of 4 KiB, so that of a
    transformer of any size some 20 MB are read. Networks that were trained apart, or one from the
    other, differ all over a tensor, and so in this; a byte that is damaged may lie between.

    Raises:
      ValueError: its header is not that of a safetensors file.
    """
    file = pathlib.Path(file)
    size = file.stat().st_size
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        try:
            if length > size:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = stream.read(length)
            spans = [
                value["data_offsets"]
                for name, value in json.loads(header).items()
                if name != "__metadata__"
            ]
            spans = sorted((int(start), int(end)) for start, end in spans)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is truncated or damaged ({error}); copy it again") from error
        digest = hashlib.sha256(size.to_bytes(8, "little") + header)
        for start, end in spans:
            for at in _places(end - start):
                stream.seek(8 + length + start + at)
                digest.update(stream.read(min(_PIECE, end - start - at)))
    return digest.hexdigest()


def _places(size: int) -> list[int]:
    """Where the pieces of a tensor of so many bytes begin."""
    if size <= _PIECES * _PIECE:
        return list(range(0, size, _PIECE))
    return [i * (size - _PIECE) // (_PIECES - 1) for i in range(_PIECES)]

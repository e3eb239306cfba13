"""A fast reader of the text chunks at the beginning of a PNG: a list of images has hundreds, and a search reads them all."""

from typing import BinaryIO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEAD = 2**15
"""Bytes that are read: more than most prompts take."""
_KEYWORD = 79
"""Most bytes of a keyword in a PNG."""
_PLAIN = b"\0\0"
"""The flag and the method of an iTXt chunk that is not compressed."""


def png_texts(file: BinaryIO) -> dict[str, str] | None:
    """Return the text chunks before the pixels of a PNG, by keyword. None if the file is none, or has something that only a
    complete reader understands: a compressed text, or more than `_HEAD` bytes before the pixels."""
    head = file.read(_HEAD)
    if not head.startswith(_SIGNATURE):
        return None
    texts: dict[str, str] = {}
    begin = len(_SIGNATURE)
    while (kind := head[begin + 4 : begin + 8]) != b"IDAT":
        end = begin + 8 + int.from_bytes(head[begin : begin + 4])
        if end + 4 > len(head) or kind == b"zTXt":
            return None
        keyword, separator, value = head[begin + 8 : end].partition(b"\0")
        if kind in (b"tEXt", b"iTXt"):
            if not separator or len(keyword) > _KEYWORD:
                return None
            name = keyword.decode("latin-1")
            if kind == b"tEXt":
                texts[name] = value.decode("latin-1")
            else:
                parts = value.removeprefix(_PLAIN).split(b"\0", 2)  # a language, a translation of the keyword, the text
                if not value.startswith(_PLAIN) or len(parts) < 3:
                    return None
                try:
                    _, _, texts[name] = (
                        part.decode() for part in parts
                    )  # a complete reader skips a chunk with any that is not UTF-8
                except UnicodeDecodeError:
                    return None
        begin = end + 4
    return texts

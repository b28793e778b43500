"""What a file is by its first bytes: a video, an image, or neither."""

from __future__ import annotations

import re
from typing import BinaryIO, Literal

Kind = Literal["video", "image"]
HEAD = 1024  # bytes that `kind_of_content` looks at
APPLE_DOUBLE = b"\x00\x05\x16\x07"  # macOS keeps a file's attributes in such a "._name" beside it
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_VIDEOS = (
    b"\x1aE\xdf\xa3",  # Matroska, WebM
    b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF, WMV
    b"FLV\x01",
    b"\0\0\1\xba",  # MPEG program stream, VOB
    b"\0\0\1\xb3",  # MPEG-1 and MPEG-2 video
    b"\0\0\1\xb0",  # MPEG-4 video
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02",  # MXF
    b"\0\0\0\0\1\xbc",  # GXF
    b"\xb7\xd8\x00\x20\x37\x49\xda\x11\xa6\x4e\x00\x07\xe9\x5e\xad\x8d",  # WTV
    b"\x1f\x07\x00",  # DV
    b".RMF",  # RealMedia
    b"DKIF",  # IVF
    b"YUV4MPEG2",
    b"nut/multimedia container\0",
    b"DHAV",  # Dahua's cameras
    b"IMKH",  # Hikvision's cameras
)
_TRANSPORT = [  # packets of MPEG-TS, M2TS, and with error correction; the first may be cut off
    re.compile(rb".{0,%d}?(?:G.{%d}){4}G" % (size - 1, size - 1), re.DOTALL)
    for size in (188, 192, 204)
]
_STREAM = re.compile(  # H.264, H.265 and MPEG-4 without a container: parameter sets, delimiters
    rb"\x00{2,3}\x01(?:[\x27\x47\x67]|\x09[\x10\x30\x50\x70\x90\xb0\xd0\xf0]|[\x40\x46]\x01"
    rb"|[\x00-\x1f]\x00\x00\x01[\x20-\x2f])"
)
_ATOMS = (b"ftyp", b"moov", b"mdat", b"wide", b"skip", b"free", b"pnot")
_OTHER_BRANDS = {b"M4A ", b"M4B ", b"M4P ", b"avif", b"heic", b"heix", b"heif", b"mif1", b"crx "}


def kind_of_content(head: bytes) -> Kind | Literal["gif"] | None:
    """What a file with the first bytes `head` (up to HEAD) is; None if neither video nor image."""
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head.startswith(_IMAGES) or _is_bitmap(head):
        return "image"
    if head.startswith(b"RIFF"):
        if head[8:12] == b"WEBP":
            return "video" if is_animated_webp(head) else "image"
        return "video" if head[8:12] in (b"AVI ", b"AVIX", b"AMV ") else None
    if head[4:8] in _ATOMS:
        return None if head[4:8] == b"ftyp" and head[8:12] in _OTHER_BRANDS else "video"
    if head.startswith(b"OggS"):  # the first page of every stream comes first
        theora_or_vp8 = b"\x80theora" in head or b"OVP80" in head
        return "video" if theora_or_vp8 else None
    if head.startswith(_VIDEOS) or _STREAM.match(head):
        return "video"
    return "video" if any(pattern.match(head) for pattern in _TRANSPORT) else None


def is_animated_webp(head: bytes) -> bool:
    """Whether the first bytes are those of a WebP with several pictures."""
    extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X"
    return extended and len(head) > 20 and bool(head[20] & 2)


def is_animated_gif(file: BinaryIO) -> bool:
    """Whether a GIF has several pictures; reads from the file's position to the second one."""
    header = file.read(13)
    _skip_colours(file, header[10:11])
    pictures = 0
    while block := file.read(1):
        if block == b",":
            pictures += 1
            if pictures == 2:
                return True
            _skip_colours(file, file.read(9)[8:9])
            file.read(1)  # the size of LZW's codes
        elif block == b"!":
            file.read(1)  # the kind of extension
        else:  # the end, or damage
            return False
        while length := file.read(1):  # the block's parts
            if length == b"\0":
                break
            file.seek(length[0], 1)
    return False


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    if flags and flags[0] & 0x80:
        file.seek(3 << ((flags[0] & 7) + 1), 1)


def _is_bitmap(head: bytes) -> bool:
    sizes = (b"\x0c\0\0\0", b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0")  # of BMP's second header
    return head[:2] == b"BM" and head[14:18] in sizes

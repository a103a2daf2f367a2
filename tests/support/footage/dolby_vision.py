"""Dolby Vision's metadata of a frame (RPU), as a NAL unit of H.265: no change of colours, in the form of a profile."""

from __future__ import annotations

import struct

START, HEADER, PREFIX = b"\0\0\0\1", b"\x7c\x01", b"\x19"  # NAL unit of type 62


def rpu(profile: int) -> bytes:
    """The RPU of profile 5 (IPTPQc2 in full range) or of profile 8 (a base layer of BT.2100)."""
    is_iptpqc2 = profile == 5
    bits = _fixed((6, 2), (11, 18), (4, 0 if is_iptpqc2 else 1), (4, 0), (1, 1))  # type, format, profile, level
    bits += _fixed((1, 0), (2, 0)) + _golomb(23) + _fixed((2, 1), (1, int(is_iptpqc2)))  # 23 bits of a fraction; range
    bits += _golomb(2) + _golomb(2) + _golomb(4) + _fixed((1, 0), (3, 0), (1, 0), (1, 1))  # depths of 10, 10, 12 bits
    bits += _fixed((1, 0), (1, 0)) + 3 * _golomb(0)  # no metadata of display, no earlier RPU
    bits += 3 * (_golomb(0) + _fixed((10, 0), (10, 1023)))  # pivots of three channels
    bits += 2 * _golomb(0)
    bits += 3 * (
        2 * _golomb(0) + _fixed((1, 0)) + _golomb(0) + _fixed((23, 0)) + _golomb(1) + _fixed((23, 0))
    )  # 0 + 1x
    bits += "0" * (-len(bits) % 8)
    body = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return START + HEADER + _escaped(PREFIX + body + struct.pack(">I", _crc32(body)) + b"\x80")


def _fixed(*fields: tuple[int, int]) -> str:
    return "".join(format(value, f"0{size}b") for size, value in fields)


def _golomb(value: int) -> str:
    text = format(value + 1, "b")
    return "0" * (len(text) - 1) + text


def _crc32(data: bytes) -> int:
    """CRC-32/MPEG-2."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 if crc >> 31 else crc << 1) & 0xFFFFFFFF
    return crc


def _escaped(data: bytes) -> bytes:
    """With the bytes that keep a start code out of a NAL unit."""
    escaped, zeros = bytearray(), 0
    for byte in data:
        if zeros >= 2 and byte <= 3:
            escaped.append(3)
            zeros = 0
        escaped.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(escaped)

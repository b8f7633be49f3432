#!/usr/bin/env python3
"""Print the sweep constants of vectors.go from implementations that share no code with Coffer.

AEADs come from the Python package cryptography (OpenSSL); CRCs and Reed-Solomon are computed bit by bit from their
definitions. Run: python3 hw/testdata/vectors.py
"""
import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.padding import PKCS7

LENGTHS = [0, 1] + [(1 << p) + d for p in range(4, 17) for d in (-1, 0, 1)]


def pattern(n, seed):
    return bytes((j * 7 + (j >> 8) * 13 + seed) & 255 for j in range(n))


def cbc_hmac(key, nonce, plain, aad):
    """AEAD_AES_256_CBC_HMAC_SHA_512, draft-mcgrew-aead-aes-cbc-hmac-sha2-05 2.1 and 2.7, without the leading IV."""
    pad = PKCS7(128).padder()
    enc = Cipher(algorithms.AES(key[32:]), modes.CBC(nonce)).encryptor()
    body = enc.update(pad.update(plain) + pad.finalize()) + enc.finalize()
    tag = hmac.new(key[:32], aad + nonce + body + (8 * len(aad)).to_bytes(8, "big"), hashlib.sha512).digest()
    return body + tag[:32]


def aead(name, key_size, nonce_size, seal):
    digest = hashlib.sha256()
    for i, n in enumerate(LENGTHS):
        key, nonce = pattern(key_size, i), pattern(nonce_size, i + 1)
        digest.update(seal(key, nonce, pattern(n, i + 2), pattern(i, i + 3)))
    print(name, digest.hexdigest())


def crc(name, bits, poly):
    """Reflected CRC, all-ones start and final inversion, carried over pieces of every length and alignment."""
    mask = (1 << bits) - 1
    table = []
    for b in range(256):
        for _ in range(8):
            b = b >> 1 ^ (poly if b & 1 else 0)
        table.append(b)
    value = 0
    for i, n in enumerate(LENGTHS):
        value ^= mask
        for b in pattern(i % 64 + n, i)[i % 64:]:
            value = value >> 8 ^ table[(value ^ b) & 255]
        value ^= mask
    print(name, "%0*x" % (bits // 4, value))


def gf_mul(a, b):
    r = 0
    while b:
        if b & 1:
            r ^= a
        a = a << 1 ^ (0x11D if a & 0x80 else 0)
        b >>= 1
    return r


def gf_inv(a):
    return next(b for b in range(1, 256) if gf_mul(a, b) == 1)


def solve(a, b):
    """X with a X = b, over the field, by elimination."""
    n = len(a)
    m = [list(x) + list(y) for x, y in zip(a, b)]
    for c in range(n):
        p = next(r for r in range(c, n) if m[r][c])
        m[c], m[p] = m[p], m[c]
        s = gf_inv(m[c][c])
        m[c] = [gf_mul(s, x) for x in m[c]]
        for r in range(n):
            if r != c and m[r][c]:
                f = m[r][c]
                m[r] = [x ^ gf_mul(f, y) for x, y in zip(m[r], m[c])]
    return [row[n:] for row in m]


def parity_rows(data, parity):
    """Rows below the identity of V * (top of V)^-1, V[r][c] = r^c, found as X with X * top = bottom, transposed."""
    def power(r, c):
        v = 1
        for _ in range(c):
            v = gf_mul(v, r)
        return v
    v = [[power(r, c) for c in range(data)] for r in range(data + parity)]
    top_t = [list(x) for x in zip(*v[:data])]
    bottom_t = [list(x) for x in zip(*v[data:])]
    return [list(x) for x in zip(*solve(top_t, bottom_t))]


def reed_solomon():
    digest = hashlib.sha256()
    for data, parity in ((1, 1), (1, 3), (2, 1), (4, 2), (8, 4), (12, 4), (16, 16), (28, 4), (31, 1)):
        for n in (1, 63, 64, 65, 200, 4097):
            shards = [pattern(n, data + 31 * i) for i in range(data)]
            for row in parity_rows(data, parity):
                out = bytearray(n)
                for c, shard in zip(row, shards):
                    t = bytes(gf_mul(c, x) for x in range(256))
                    for j, x in enumerate(shard.translate(t)):
                        out[j] ^= x
                digest.update(out)
    print("reed-solomon", digest.hexdigest())


if __name__ == "__main__":
    aead("aes-256-gcm", 32, 12, lambda k, n, p, a: AESGCM(k).encrypt(n, p, a))
    aead("chacha20-poly1305", 32, 12, lambda k, n, p, a: ChaCha20Poly1305(k).encrypt(n, p, a))
    aead("aes-256-cbc-hmac-sha-512", 64, 16, cbc_hmac)
    crc("crc64-nvme", 64, 0x9A6C9329AC4BC9B5)
    crc("crc32", 32, 0xEDB88320)
    crc("crc32c", 32, 0x82F63B78)
    reed_solomon()

"""Key exchange, encryption and signatures of the binary protocol (protocol §2.10).

The exchange fixes weak choices: one IV for every message, MD5, and a key of 64 bits. It is what the
SDKs do. Who has to keep a secret uses TLS.
"""

from __future__ import annotations

import base64
import secrets
import string
from binascii import a2b_base64, b2a_base64, b2a_hex
from dataclasses import dataclass
from hashlib import md5

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC

BLOCK = 16
PADDING = [bytes((missing,)) * missing for missing in range(BLOCK + 1)]
"""PKCS#7: as many bytes as are missing, each of which says how many. A full block if none is."""
SALT_LETTERS = string.ascii_letters + string.digits


def encrypted_length(length: int) -> int:
    """How long the text is that so many bytes become: whole blocks, of whose bytes each three, or
    what is left of three, become four characters."""
    blocks = (length // BLOCK + 1) * BLOCK
    return (blocks + 2) // 3 * 4


def padding_of(length: int) -> bytes:
    """What has to follow so many bytes."""
    return PADDING[BLOCK - length % BLOCK]


class Cipher:
    """AES-128 in CBC mode with one IV for all messages, as base64 text.

    Making a context for a message takes longer than encrypting it, so each direction keeps one for
    ever. What such a context carries over is the last block of ciphertext, and it adds that (xor)
    to the next block, where a new one would add the IV. Encrypting therefore adds both to the first
    block: the last one cancels out, the IV stays. Decrypting feeds the IV as if it were ciphertext
    and drops what comes out of it. Not for two threads at once.
    """

    __slots__ = ("_carried", "_decrypt", "_encrypt", "_iv", "_iv_bits")

    def __init__(self, key: bytes, iv: bytes) -> None:
        cipher = BlockCipher(AES(key), CBC(iv))
        self._encrypt = cipher.encryptor().update
        self._decrypt = cipher.decryptor().update
        self._iv = iv
        self._iv_bits = int.from_bytes(iv, "big")
        self._carried = 0
        """IV xor what the context carries over."""

    def encrypt(self, plain: bytes) -> bytes:
        """The ciphertext of these bytes, as base64 text."""
        return self.encrypt_padded(plain + padding_of(len(plain)))

    def encrypt_padded(self, padded: bytes) -> bytes:
        """The same of bytes with their padding, which many ciphers may share."""
        first = int.from_bytes(padded[:BLOCK], "big") ^ self._carried
        blocks = self._encrypt(first.to_bytes(BLOCK, "big") + padded[BLOCK:])
        self._carried = int.from_bytes(blocks[-BLOCK:], "big") ^ self._iv_bits
        return b2a_base64(blocks, newline=False)

    def decrypt(self, text: bytes) -> bytes:
        """What `encrypt` was given. Raises ValueError for any other text."""
        blocks = a2b_base64(text, strict_mode=True)
        if not blocks or len(blocks) % BLOCK:
            raise ValueError("not whole blocks")
        padded = self._decrypt(self._iv + blocks)[BLOCK:]
        missing = padded[-1]
        if not 1 <= missing <= BLOCK or not padded.endswith(PADDING[missing]):
            raise ValueError("not padded")
        return padded[:-missing]

    def sign(self, parts: bytes) -> bytes:
        """The msgKey of a text: MD5, in hexadecimal, of its encryption."""
        return self.sign_padded(parts + padding_of(len(parts)))

    def sign_padded(self, padded: bytes) -> bytes:
        """The same of a text with its padding."""
        return b2a_hex(md5(self.encrypt_padded(padded), usedforsecurity=False).digest())


@dataclass(frozen=True, slots=True)
class Agreement:
    """What the server answers a client's key with, and the cipher that both now have."""

    server_key: str
    salt: str
    cipher: Cipher


def agree(client_key: str) -> Agreement:
    """Agree with a client that sends this key: the base64 text of 32 bytes.

    Raises ValueError for one that is none, or that would make the secret known to all.
    """
    peer = X25519PublicKey.from_public_bytes(a2b_base64(client_key, strict_mode=True))
    own = X25519PrivateKey.generate()
    salt = "".join(secrets.choice(SALT_LETTERS) for _ in range(BLOCK))
    server_key = base64.b64encode(own.public_key().public_bytes_raw()).decode()
    return Agreement(server_key, salt, cipher_of(own.exchange(peer), salt))


def cipher_of(shared: bytes, salt: str) -> Cipher:
    """The cipher of a shared secret: its base64, hashed, gives the key as 16 letters of text."""
    digest = md5(b2a_base64(shared, newline=False), usedforsecurity=False).hexdigest()
    return Cipher(digest[:BLOCK].encode(), salt.encode())

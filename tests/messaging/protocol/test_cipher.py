"""Key exchange, encryption and signatures, against the SDK's own and against plain AES."""

import base64
import json
import os
from hashlib import md5
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher as BlockCipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CBC
from cryptography.hazmat.primitives.padding import PKCS7
from hypothesis import given
from hypothesis import strategies as st

from messaging.protocol.cipher import SALT_LETTERS, Cipher, agree, cipher_of, encrypted_length

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "crypto.json").read_text())
KEY, IV = b"0123456789abcdef", b"AbCdEfGhIjKlMnOp"
TEXTS = st.lists(st.binary(max_size=100), min_size=1)


def encrypt_anew(plain: bytes, key: bytes = KEY, iv: bytes = IV) -> bytes:
    """§2.10, with a context of its own for each message."""
    padder, context = PKCS7(128).padder(), BlockCipher(AES(key), CBC(iv)).encryptor()
    padded = padder.update(plain) + padder.finalize()
    return base64.b64encode(context.update(padded) + context.finalize())


def test_vector_secret_gives_the_vector_key():
    for end in ("client", "server"):
        private = X25519PrivateKey.from_private_bytes(bytes.fromhex(VECTORS[end]["private_hex"]))
        other = VECTORS["server" if end == "client" else "client"]["public_b64"]
        shared = private.exchange(X25519PublicKey.from_public_bytes(base64.b64decode(other)))
        assert shared.hex() == VECTORS[end]["shared_hex"]
        salt = VECTORS["iv_ascii_equals_connack_salt"]
        ours = cipher_of(shared, salt).encrypt(b"hello")
        key = VECTORS["aes_key_ascii"].encode()
        assert ours == encrypt_anew(b"hello", key, salt.encode())


@pytest.mark.parametrize(
    "sample", VECTORS["aes_cbc_pkcs7_base64"], ids=lambda sample: repr(sample["plain_utf8"])
)
def test_vector_samples(sample):
    cipher = Cipher(
        VECTORS["aes_key_ascii"].encode(), VECTORS["iv_ascii_equals_connack_salt"].encode()
    )
    for _ in range(3):
        assert cipher.encrypt(sample["plain_utf8"].encode()).decode() == sample["out_b64"]
        assert cipher.decrypt(sample["out_b64"].encode()) == sample["plain_utf8"].encode()
        assert cipher.sign(sample["plain_utf8"].encode()).decode() == sample["md5_of_out"]


@given(TEXTS)
def test_no_message_depends_on_those_before_it(plains):
    cipher = Cipher(KEY, IV)
    texts = [cipher.encrypt(plain) for plain in plains]
    assert texts == [encrypt_anew(plain) for plain in plains]
    assert [cipher.decrypt(text) for text in reversed(texts)] == plains[::-1]
    keys = [md5(text).hexdigest().encode() for text in texts]
    assert [cipher.sign(plain) for plain in plains] == keys


@given(st.lists(st.tuples(st.sampled_from(["encrypt", "decrypt", "bad"]), st.binary(max_size=50))))
def test_directions_and_failures_do_not_disturb_each_other(steps):
    cipher = Cipher(KEY, IV)
    for step, plain in steps:
        if step == "encrypt":
            assert cipher.encrypt(plain) == encrypt_anew(plain)
        elif step == "decrypt":
            assert cipher.decrypt(encrypt_anew(plain)) == plain
        else:
            with pytest.raises(ValueError, match=r"\w"):
                cipher.decrypt(encrypt_anew(plain)[:-4])


@given(st.integers(0, 5_000))
def test_length_is_known_before(length):
    assert encrypted_length(length) == len(Cipher(KEY, IV).encrypt(bytes(length)))


def with_padding(padded: bytes) -> bytes:
    return base64.b64encode(BlockCipher(AES(KEY), CBC(IV)).encryptor().update(padded))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"====",
        b"AAAA",  # 3 bytes are no block
        encrypt_anew(b"hello")[:-1],
        encrypt_anew(b"hello") + b"\n",
        b" " + encrypt_anew(b"hello"),
        encrypt_anew(b"hello") + b"AAAA",
        b"\xff" * 24,
        with_padding(bytes(16)),
        with_padding(b"x" * 15 + b"\x11"),
        with_padding(b"x" * 13 + b"\x02\x03\x03"),
    ],
    ids=[
        "empty", "padding alone", "short", "cut", "newline", "space", "longer", "no ASCII",
        "padding of 0", "padding of 17", "padding that differs",
    ],
)  # fmt: skip
def test_text_that_does_not_decipher_is_refused(text):
    cipher = Cipher(KEY, IV)
    with pytest.raises(ValueError, match=r"\w"):
        cipher.decrypt(text)
    assert cipher.decrypt(cipher.encrypt(b"and then")) == b"and then"


def client_with(private: X25519PrivateKey) -> str:
    return base64.b64encode(private.public_key().public_bytes_raw()).decode()


def test_both_ends_agree():
    private = X25519PrivateKey.generate()
    agreement = agree(client_with(private))
    server = X25519PublicKey.from_public_bytes(base64.b64decode(agreement.server_key))
    theirs = cipher_of(private.exchange(server), agreement.salt)
    assert theirs.decrypt(agreement.cipher.encrypt(b"hi")) == b"hi"
    assert agreement.cipher.decrypt(theirs.encrypt(b"ho")) == b"ho"


def test_every_session_has_its_own_key_and_salt():
    client_key = client_with(X25519PrivateKey.generate())
    agreements = [agree(client_key) for _ in range(50)]
    assert len({each.server_key for each in agreements}) == 50
    salts = {each.salt for each in agreements}
    assert len(salts) == 50
    assert all(len(salt) == 16 and set(salt) <= set(SALT_LETTERS) for salt in salts)


LOW_ORDER = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"


@pytest.mark.parametrize(
    "client_key",
    [
        "",
        "?",
        "é" * 44,
        base64.b64encode(os.urandom(31)).decode(),
        base64.b64encode(os.urandom(33)).decode(),
        client_with(X25519PrivateKey.generate())[:-1],
        base64.b64encode(bytes(32)).decode(),
        base64.b64encode(bytes.fromhex(LOW_ORDER)).decode(),
    ],
    ids=["empty", "no base64", "no ASCII", "31", "33", "cut", "zero", "low order"],
)
def test_key_that_is_none_is_refused(client_key):
    with pytest.raises(ValueError, match=r"\w"):
        agree(client_key)

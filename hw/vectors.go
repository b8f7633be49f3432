package hw

import "strings"

// aeadVector is one answer of a standard. All but plain and additional, which are plain bytes, are in hexadecimal.
type aeadVector struct {
	key, nonce        string
	plain, additional string
	sealed            string
}

// Digests of the sweeps (see selftest.go) as computed by testdata/vectors.py from OpenSSL and from first principles.
const (
	gcmSweep         = "dbb3093d530acb995dd0cdd5bb9ff85ab9e388533ed7f8a236c1f58c5730c5e4"
	chachaSweep      = "6cf23d8844bda2912f901accf844446c81b4ec7c38e7a238812463a6e401dba3"
	cbcHMACSweep     = "267b9c04f5bc9ae9f9d5c2a3e097fbc9ed4bb7d4bfadd10fe0522b15d459e9c8"
	reedSolomonSweep = "7c81d5a821da2d6e6270ebc235c3a405f1d3412699e7a2e822e78f4d3472e420"

	crc64Sweep  uint64 = 0x67833f0ebbe7fdaa
	crc32Sweep  uint32 = 0x4d239170
	crc32cSweep uint32 = 0x2f617b7e
)

// Check values of the CRCs, over "123456789": NVM Command Set Specification 1.0 and the RevEng catalogue.
const (
	crc64Check  uint64 = 0xae8b14860a799888
	crc32Check  uint32 = 0xcbf43926
	crc32cCheck uint32 = 0xe3069283
)

// gcmVectors are test cases 13, 14 and 16 of McGrew and Viega, The Galois/Counter Mode of Operation, as submitted to NIST.
func gcmVectors() []aeadVector {
	zero := strings.Repeat("00", 32)
	return []aeadVector{
		{key: zero, nonce: zero[:24], sealed: "530f8afbc74536b9a963b4f1c4cb738b"},
		{
			key: zero, nonce: zero[:24], plain: string(make([]byte, 16)),
			sealed: "cea7403d4d606b6e074ec5d3baf39d18d0d1c8a799996bf0265b98b5d48ab919",
		},
		{
			key:   "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308",
			nonce: "cafebabefacedbaddecaf888",
			plain: "\xd9\x31\x32\x25\xf8\x84\x06\xe5\xa5\x59\x09\xc5\xaf\xf5\x26\x9a\x86\xa7\xa9\x53\x15\x34\xf7\xda\x2e\x4c\x30\x3d\x8a\x31\x8a\x72" +
				"\x1c\x3c\x0c\x95\x95\x68\x09\x53\x2f\xcf\x0e\x24\x49\xa6\xb5\x25\xb1\x6a\xed\xf5\xaa\x0d\xe6\x57\xba\x63\x7b\x39",
			additional: "\xfe\xed\xfa\xce\xde\xad\xbe\xef\xfe\xed\xfa\xce\xde\xad\xbe\xef\xab\xad\xda\xd2",
			sealed: "522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa" +
				"8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f66276fc6ece0f4e1768cddf8853bb2d551b",
		},
	}
}

// chachaVectors is the example of RFC 8439 section 2.8.2.
func chachaVectors() []aeadVector {
	return []aeadVector{{
		key:   "808182838485868788898a8b8c8d8e8f909192939495969798999a9b9c9d9e9f",
		nonce: "070000004041424344454647",
		plain: "Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, " +
			"sunscreen would be it.",
		additional: "\x50\x51\x52\x53\xc0\xc1\xc2\xc3\xc4\xc5\xc6\xc7",
		sealed: "d31a8d34648e60db7b86afbc53ef7ec2a4aded51296e08fea9e2b5a736ee62d6" +
			"3dbea45e8ca9671282fafb69da92728b1a71de0a9e060b2905d6a5b67ecd3b36" +
			"92ddbd7f2d778b8c9803aee328091b58fab324e4fad675945585808b4831d7bc" +
			"3ff4def08e4b7a9de576d26586cec64b61161ae10b594f09e26a7e902ecbd0600691",
	}}
}

// cbcHMACVectors is section 5.4 of draft-mcgrew-aead-aes-cbc-hmac-sha2-05, also in RFC 7518 B.3, without the leading IV.
func cbcHMACVectors() []aeadVector {
	return []aeadVector{{
		key: "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f" +
			"202122232425262728292a2b2c2d2e2f303132333435363738393a3b3c3d3e3f",
		nonce: "1af38c2dc2b96ffdd86694092341bc04",
		plain: "A cipher system must not be required to be secret, and it must be able to fall into the hands of " +
			"the enemy without inconvenience",
		additional: "The second principle of Auguste Kerckhoffs",
		sealed: "4affaaadb78c31c5da4b1b590d10ffbd3dd8d5d302423526912da037ecbcc7bd" +
			"822c301dd67c373bccb584ad3e9279c2e6d12a1374b77f077553df829410446b" +
			"36ebd97066296ae6427ea75c2e0846a11a09ccf5370dc80bfecbad28c73f09b3" +
			"a3b75e662a2594410ae496b2e2e6609e31e6e02cc837f053d21f37ff4f51950b" +
			"be2638d09dd7a4930930806d0703b1f64dd3b4c088a7f45c216839645b2012bf2e6269a8c56a816dbc1b267761955bc5",
	}}
}

// crc64Vectors are the 4 KiB test cases of the NVM Command Set Specification 1.0, 5.2.1.3.5, by the function of the byte's
// place that makes each.
func crc64Vectors() map[uint64]func(i int) byte {
	return map[uint64]func(i int) byte{
		0x6482d367eb22b64e: func(int) byte { return 0 },
		0xc0ddba7302eca3ac: func(int) byte { return 0xff },
		0x3e729f5f6750449c: func(i int) byte { return byte(i) },
		0x9a2df64b8e9e517e: func(i int) byte { return byte(4095 - i) },
	}
}

// md5Vectors is the test suite of RFC 1321 A.5, from digest to message.
func md5Vectors() map[string]string {
	return map[string]string{
		"d41d8cd98f00b204e9800998ecf8427e": "",
		"0cc175b9c0f1b6a831c399e269772661": "a",
		"900150983cd24fb0d6963f7d28e17f72": "abc",
		"f96b697d7cb7938d525a2f31aaf161d0": "message digest",
		"c3fcd3d76192e4007dfb496cca67e13b": "abcdefghijklmnopqrstuvwxyz",
		"d174ab98d277d9f5a5611c2c9f419d9f": "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789",
		"57edf4a22be3c955ac49da2e2107b67a": strings.Repeat("1234567890", 8),
	}
}

// millionA is the long message of FIPS 180-2.
func millionA() string { return strings.Repeat("a", 1e6) }

// sha256Vectors are the examples of FIPS 180-2, from digest to message.
func sha256Vectors() map[string]string {
	return map[string]string{
		"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad": "abc",
		"248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1": "abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq",
		"cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0": millionA(),
	}
}

// sha512Vectors are the examples of FIPS 180-2, from digest to message.
func sha512Vectors() map[string]string {
	return map[string]string{
		"ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a" +
			"2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f": "abc",
		"8e959b75dae313da8cf4f72814fc143f8f7779c6eb9f7fa17299aeadb6889018" +
			"501d289e4900f7e4331b99dec4b5433ac7d329eeb6dd26545e96e55b874be909": "abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmn" +
			"hijklmnoijklmnopjklmnopqklmnopqrlmnopqrsmnopqrstnopqrstu",
		"e718483d0ce769644e2e42c7bc15b4638e1f98b13b2044285632a803afa973eb" +
			"de0ff244877ea60a4cb0432ce577c31beb009c5c2c49aa2e4eadb217ad8cc09b": millionA(),
	}
}

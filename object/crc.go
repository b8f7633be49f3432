package object

// Reflected generator polynomials: CRC-32 (ISO-HDLC), CRC-32C (Castagnoli), CRC-64/NVME (NVM Express base specification 2.0,
// figure 5.2.1.3.4). All three start from all ones and end inverted, so that concatenations combine by the same rule.
const (
	polyCRC32     = 0xedb88320
	polyCRC32C    = 0x82f63b78
	polyCRC64NVME = 0x9a6c9329ac4bc9b5
)

// ring is the polynomials over GF(2) modulo a CRC's generator. An element has x^0 in its highest bit.
type ring struct {
	poly  uint64 // reflected, without its leading term
	width uint   // bits
}

func (a Algo) ring() (ring, bool) {
	switch a {
	case AlgoCRC32:
		return ring{polyCRC32, 32}, true
	case AlgoCRC32C:
		return ring{polyCRC32C, 32}, true
	case AlgoCRC64NVME:
		return ring{polyCRC64NVME, 64}, true
	}
	return ring{}, false
}

func (r ring) mul(a, b uint64) uint64 {
	var p uint64
	for m := uint64(1) << (r.width - 1); a != 0 && m != 0; m >>= 1 {
		if a&m != 0 {
			p ^= b
			a ^= m
		}
		carry := b & 1
		b >>= 1
		if carry != 0 {
			b ^= r.poly
		}
	}
	return p
}

// shift returns x^(8 n): what n bytes behind a message multiply its CRC by.
func (r ring) shift(n int64) uint64 {
	p := uint64(1) << (r.width - 1)
	for sq := uint64(1) << (r.width - 1 - 8); n > 0; n >>= 1 {
		if n&1 != 0 {
			p = r.mul(p, sq)
		}
		sq = r.mul(sq, sq)
	}
	return p
}

// combine returns the CRC of a message with CRC a followed by one of n bytes with CRC b.
func (r ring) combine(a, b uint64, n int64) uint64 { return r.mul(r.shift(n), a) ^ b }

package object

import (
	"crypto/sha1"
	"encoding/binary"
	"hash"
	"sync"
	"time"

	"coffer/hw"
)

// digests makes and keeps hash states.
type digests struct {
	crypto          *hw.Engine
	md5, sha1, sha2 sync.Pool
	mMD5, mSHA      *hw.Meter
	mCRC64          *hw.Meter
	mCRC32, mCRC32C *hw.Meter
}

func newDigests(e *hw.Engine) *digests {
	return &digests{
		crypto: e,
		md5:    sync.Pool{New: func() any { return e.NewHash(hw.MD5) }},
		sha1:   sync.Pool{New: func() any { return sha1.New() }},
		sha2:   sync.Pool{New: func() any { return e.NewHash(hw.SHA256) }},
		mMD5:   e.Meter(hw.MD5, hw.Sum),
		mSHA:   e.Meter(hw.SHA256, hw.Sum),

		mCRC64: e.Meter(hw.CRC64NVME, hw.Sum), mCRC32: e.Meter(hw.CRC32, hw.Sum), mCRC32C: e.Meter(hw.CRC32C, hw.Sum),
	}
}

// checksummer computes one checksum over a body.
type checksummer struct {
	d    *digests
	algo Algo
	crc  uint64
	sha  hash.Hash
}

func (d *digests) checksum(a Algo) checksummer {
	c := checksummer{d: d, algo: a}
	switch a {
	case AlgoSHA1:
		c.sha = d.sha1.Get().(hash.Hash)
	case AlgoSHA256:
		c.sha = d.sha2.Get().(hash.Hash)
	}
	if c.sha != nil {
		c.sha.Reset()
	}
	return c
}

func (c *checksummer) update(p []byte) {
	t := time.Now()
	var m *hw.Meter
	switch c.algo {
	case AlgoCRC64NVME:
		c.crc, m = c.d.crypto.CRC64NVME(c.crc, p), c.d.mCRC64
	case AlgoCRC32:
		c.crc, m = uint64(c.d.crypto.CRC32(uint32(c.crc), p)), c.d.mCRC32
	case AlgoCRC32C:
		c.crc, m = uint64(c.d.crypto.CRC32C(uint32(c.crc), p)), c.d.mCRC32C
	case AlgoSHA1: // no primitive of package hw
		c.sha.Write(p)
	case AlgoSHA256:
		c.sha.Write(p)
		m = c.d.mSHA
	}
	if m != nil {
		m.Add(len(p), time.Since(t))
	}
}

// sum returns the checksum of what was written.
func (c *checksummer) sum() Checksum {
	out := Checksum{Algo: c.algo}
	switch c.algo {
	case AlgoNone:
	case AlgoCRC64NVME:
		out.Sum = binary.BigEndian.AppendUint64(nil, c.crc)
	case AlgoCRC32, AlgoCRC32C:
		out.Sum = binary.BigEndian.AppendUint32(nil, uint32(c.crc))
	default:
		out.Sum = c.sha.Sum(nil)
	}
	return out
}

// close gives the hash state back.
func (c *checksummer) close() {
	switch {
	case c.sha == nil:
	case c.algo == AlgoSHA1:
		c.d.sha1.Put(c.sha)
	default:
		c.d.sha2.Put(c.sha)
	}
	c.sha = nil
}

// crcValue reads a CRC's raw form.
func crcValue(sum []byte) uint64 {
	var v uint64
	for _, b := range sum {
		v = v<<8 | uint64(b)
	}
	return v
}

// fullObject combines the parts' CRCs to that of the whole object.
func fullObject(a Algo, parts []partRecord) Checksum {
	r, ok := a.ring()
	if !ok {
		return Checksum{}
	}
	var crc uint64
	for i := range parts {
		crc = r.combine(crc, crcValue(parts[i].checksum.Sum), parts[i].size)
	}
	if r.width == 32 {
		return Checksum{Algo: a, Sum: binary.BigEndian.AppendUint32(nil, uint32(crc))}
	}
	return Checksum{Algo: a, Sum: binary.BigEndian.AppendUint64(nil, crc)}
}

// composite is the checksum over the parts' raw checksums.
func (d *digests) composite(a Algo, parts []partRecord) Checksum {
	c := d.checksum(a)
	defer c.close()
	for i := range parts {
		c.update(parts[i].checksum.Sum)
	}
	sum := c.sum()
	sum.Composite = true
	return sum
}

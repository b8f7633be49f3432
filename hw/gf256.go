package hw

import "crypto/subtle"

// field is GF(2^8) modulo x^8+x^4+x^3+x^2+1 (0x11D) with generator 2: the field of every Reed-Solomon code of note for
// storage, and of the format on disk.
type field struct {
	exp [510]byte // 2^i, doubled so that a sum of two logarithms needs no reduction
	log [256]int
}

func newField() *field {
	var f field
	x := 1
	for i := range 255 {
		f.exp[i], f.exp[i+255] = byte(x), byte(x)
		f.log[x] = i
		if x <<= 1; x > 255 {
			x ^= 0x11D
		}
	}
	return &f
}

func (f *field) mul(a, b byte) byte {
	if a == 0 || b == 0 {
		return 0
	}
	return f.exp[f.log[a]+f.log[b]]
}

// inv is 1/a for a != 0.
func (f *field) inv(a byte) byte { return f.exp[255-f.log[a]] }

// power is a^n with 0^0 = 1.
func (f *field) power(a byte, n int) byte {
	r := byte(1)
	for range n {
		r = f.mul(r, a)
	}
	return r
}

// addScaled adds c times src to dst.
func (f *field) addScaled(dst, src []byte, c byte) {
	for i, x := range src {
		dst[i] ^= f.mul(c, x)
	}
}

// product returns the matrix a*b.
func (f *field) product(a, b [][]byte) [][]byte {
	r := newRows(len(a), len(b[0]))
	for i, row := range a {
		for j, c := range row {
			f.addScaled(r[i], b[j], c)
		}
	}
	return r
}

// invert returns the inverse of the square matrix m by Gauss-Jordan elimination, or false if it has none.
func (f *field) invert(m [][]byte) ([][]byte, bool) {
	n := len(m)
	w := newRows(n, 2*n) // m with the identity to its right
	for i := range w {
		copy(w[i], m[i])
		w[i][n+i] = 1
	}
	for c := range w {
		p := c
		for p < n && w[p][c] == 0 {
			p++
		}
		if p == n {
			return nil, false
		}
		w[c], w[p] = w[p], w[c]
		scale := f.inv(w[c][c])
		for i, x := range w[c] {
			w[c][i] = f.mul(scale, x)
		}
		for r := range w {
			if r != c {
				f.addScaled(w[r], w[c], w[r][c])
			}
		}
	}
	for i := range w {
		w[i] = w[i][n:]
	}
	return w, true
}

// generator returns the matrix that turns data shards into all shards: V times the inverse of V's top square, where
// V[r][c] = r^c. Its top is the identity, and any data rows of it can be inverted, since the points r differ. This is the
// matrix of Backblaze's JavaReedSolomon and of klauspost/reedsolomon, and part of the format on disk.
func (f *field) generator(data, parity int) [][]byte {
	v := newRows(data+parity, data)
	for r := range v {
		for c := range v[r] {
			v[r][c] = f.power(byte(r), c)
		}
	}
	top, ok := f.invert(v[:data])
	if !ok {
		panic("hw: singular Vandermonde matrix")
	}
	return f.product(v, top)
}

func newRows(rows, columns int) [][]byte {
	m := make([][]byte, rows)
	for i := range m {
		m[i] = make([]byte, columns)
	}
	return m
}

// matrix multiplies shards: out[i] becomes the sum over j of row i's element j times in[j]. All slices are equally long and
// not empty, no output overlaps anything else, and the numbers of slices are those of the matrix's columns and rows.
// Implementations are safe for concurrent use.
type matrix interface {
	mul(in, out [][]byte) error
}

// genericMatrix is the portable path: one look-up per byte and coefficient.
type genericMatrix [][]*[256]byte

func newGenericMatrix(rows [][]byte) (matrix, error) {
	f := newField()
	tables := make(map[byte]*[256]byte)
	m := make(genericMatrix, len(rows))
	for i, row := range rows {
		m[i] = make([]*[256]byte, len(row))
		for j, c := range row {
			t := tables[c]
			if t == nil {
				t = new([256]byte)
				for x := range t {
					t[x] = f.mul(c, byte(x))
				}
				tables[c] = t
			}
			m[i][j] = t
		}
	}
	return m, nil
}

func (m genericMatrix) mul(in, out [][]byte) error {
	for i, row := range m {
		clear(out[i])
		for j, t := range row {
			switch t[1] { // the coefficient
			case 0:
			case 1:
				subtle.XORBytes(out[i], out[i], in[j])
			default:
				o := out[i][:len(in[j])]
				for k, x := range in[j] {
					o[k] ^= t[x]
				}
			}
		}
	}
	return nil
}

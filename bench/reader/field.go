package main

// This file is the parity of docs/format.md: arithmetic in GF(2^8) with polynomial 0x11d, without tables but those made here.

// products[a][b] is a times b.
var products = func() (t [256][256]byte) {
	for a := range 256 {
		for b := range 256 {
			x, p := a, 0
			for i := range 8 {
				if b>>i&1 == 1 {
					p ^= x
				}
				if x <<= 1; x&0x100 != 0 {
					x ^= 0x11d
				}
			}
			t[a][b] = byte(p)
		}
	}
	return t
}()

func inverse(a byte) byte {
	for b := range 256 {
		if products[a][b] == 1 {
			return byte(b)
		}
	}
	panic("reader: zero has no inverse")
}

// generator is V·T⁻¹: the identity in its first d rows, then P.
func generator(d, m int) [][]byte {
	v := make([][]byte, d+m)
	for r := range v {
		v[r] = make([]byte, d)
		p := byte(1)
		for c := range v[r] {
			v[r][c] = p
			p = products[p][r]
		}
	}
	t := invert(v[:d])
	// V·T⁻¹, a matrix product: row r is the combination of T⁻¹'s rows by V's row r.
	return multiply(v, t)
}

// multiply returns m·rows, where rows may be of any length.
func multiply(m, rows [][]byte) [][]byte {
	out := make([][]byte, len(m))
	for r := range m {
		out[r] = make([]byte, len(rows[0]))
		for c, f := range m[r] {
			if f == 0 {
				continue
			}
			t := &products[f]
			for i, x := range rows[c] {
				out[r][i] ^= t[x]
			}
		}
	}
	return out
}

// invert is Gauss and Jordan's. The matrices here are never singular.
func invert(m [][]byte) [][]byte {
	n := len(m)
	w := make([][]byte, n) // m, beside it the identity
	for r := range m {
		w[r] = append(append(make([]byte, 0, 2*n), m[r]...), make([]byte, n)...)
		w[r][n+r] = 1
	}
	for c := range n {
		p := c
		for w[p][c] == 0 {
			p++
		}
		w[c], w[p] = w[p], w[c]
		f := inverse(w[c][c])
		for i := range w[c] {
			w[c][i] = products[f][w[c][i]]
		}
		for r := range n {
			if f := w[r][c]; r != c && f != 0 {
				for i := range w[r] {
					w[r][i] ^= products[f][w[c][i]]
				}
			}
		}
	}
	for r := range w {
		w[r] = w[r][n:]
	}
	return w
}

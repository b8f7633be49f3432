package blockdev

import (
	"context"
	"path/filepath"
	"testing"
	"time"
)

func TestSmoke(t *testing.T) {
	for _, kind := range []string{"uring", "pool"} {
		var devs []Device
		for i := range 6 {
			p := filepath.Join(t.TempDir(), "d")
			if err := CreateFile(p, 4<<20); err != nil {
				t.Fatal(err)
			}
			d, err := OpenFile(p, OpenOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if i == 0 {
				t.Logf("%+v", d.Limits())
			}
			if err := d.Prepare(0, 4<<20); err != nil {
				t.Fatal(err)
			}
			devs = append(devs, d)
		}
		g, err := NewGroup(devs, GroupOptions{Prefer: kind})
		if err != nil {
			t.Fatal(err)
		}
		t.Log(g.Kind(), g.Reason())
		a := NewArena(ArenaOptions{})
		b, err := a.Get(context.Background(), 6*(64<<10))
		if err != nil {
			t.Fatal(err)
		}
		ops := make([]Op, 6)
		t0 := time.Now()
		for r := range 200 {
			for i := range ops {
				ops[i] = Op{Dev: i, Write: true, Durable: true, Off: int64(r%32) * 65536, Buf: b.Bytes()[i<<16 : (i+1)<<16]}
			}
			if err := g.Run(ops); err != nil {
				t.Fatal(err)
			}
			for i := range ops {
				if ops[i].Err != nil {
					t.Fatal(ops[i].Err)
				}
			}
		}
		t.Log(time.Since(t0) / 200)
		t.Logf("%+v", devs[0].Stats())
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

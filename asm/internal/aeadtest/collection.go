package aeadtest

import (
	"crypto/cipher"
	"runtime"
	"sync"
	"testing"
)

// UnderCollection has onStack seal and open messages in many goroutines, on stacks that grow and move, while garbage is collected: a
// pointer that the assembly holds wrongly would go astray. onStack calls the concrete type, so that its buffers may lie on the stack.
func (s *Suite) UnderCollection(t *testing.T, onStack func(a cipher.AEAD, m Message) error) {
	s.each(t, func(t *testing.T, k Kernel) {
		r := NewRandom(10)
		key := s.key(r, 1)
		a, ref := k.aead(t, key), s.reference(t, key)
		var messages []Message
		for _, n := range []int{0, 1, 40, 600, 3000} {
			for _, m := range []int{0, 13, 64, 65, 300} {
				x := Message{Nonce: r.Read(s.NonceSize), Plain: r.Read(n), AAD: r.Read(m)}
				x.Sealed = ref.Seal(nil, x.Nonce, x.Plain, x.AAD)
				messages = append(messages, x)
			}
		}
		rounds := 300
		if k.Slow {
			rounds = 10
		}
		stop := make(chan struct{})
		var collector, workers sync.WaitGroup
		collector.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					runtime.GC()
				}
			}
		})
		for w := range 4 {
			workers.Go(func() {
				r := NewRandom(byte(20 + w))
				for i := range rounds {
					for _, m := range messages {
						// A goroutine of its own begins with a small stack.
						done := make(chan error)
						go func() { done <- deep(i%40, func() error { return onStack(a, m) }) }()
						if err := <-done; err != nil {
							t.Error(err)
							return
						}
						if i%20 == 0 {
							if err := m.Check(a, r); err != nil {
								t.Error(err)
								return
							}
						}
					}
				}
			})
		}
		workers.Wait()
		close(stop)
		collector.Wait()
	})
}

// deep calls f with about depth KiB of stack in use.
func deep(depth int, f func() error) error {
	var pad [1024]byte
	if depth == 0 {
		return f()
	}
	err := deep(depth-1, f)
	runtime.KeepAlive(&pad)
	return err
}

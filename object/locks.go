package object

import (
	"hash/maphash"
	"sync"
)

// Numbers of lock stripes. Two names that share a stripe only wait for each other; with as many key stripes that is rare even
// when hundreds of writers hold theirs while a commit lasts.
const (
	keyStripes    = 16384
	bucketStripes = 256
	uploadStripes = 1024
)

// locks serialise decisions: what a write finds in the index must still hold when its record takes its place in the log, so a
// lock is held across Append, I/O and all. The order is upload, then bucket, then key or part; never two of a class.
type locks struct {
	keys    [keyStripes]sync.Mutex      // of an object's key, or of a part number of an upload
	buckets [bucketStripes]sync.RWMutex // shared by writes into a bucket, exclusive for its creation, change and deletion
	uploads [uploadStripes]sync.RWMutex // shared by parts, exclusive for completion and abort
	seed    maphash.Seed
}

type keyName struct {
	bucket uint64
	key    string
}

type partName struct {
	upload id16
	number int
}

func (l *locks) key(bucket uint64, key string) *sync.Mutex {
	return &l.keys[maphash.Comparable(l.seed, keyName{bucket, key})%keyStripes]
}

func (l *locks) part(upload id16, number int) *sync.Mutex {
	return &l.keys[maphash.Comparable(l.seed, partName{upload, number})%keyStripes]
}

func (l *locks) bucket(name string) *sync.RWMutex {
	return &l.buckets[maphash.String(l.seed, name)%bucketStripes]
}

func (l *locks) upload(id id16) *sync.RWMutex {
	return &l.uploads[maphash.Bytes(l.seed, id[:])%uploadStripes]
}

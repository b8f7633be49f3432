package object

import (
	"hash/maphash"
	"sync"

	"coffer/object/internal/index"
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

// entry takes what orders the log's records of an index entry. For an object the lock of its key is enough, as a bucket with an object
// in it is not deleted; a shadow has no order to keep.
func (l *locks) entry(key []byte) (unlock func(), err error) {
	var name string
	var bucket uint64
	var id index.UploadID
	var number uint16
	switch index.KindOf(key) {
	case index.KindObject:
		if bucket, name, err = index.ParseObjectKey(key); err == nil {
			return locked(l.key(bucket, name)), nil
		}
	case index.KindConfig:
		if name, err = index.ParseConfigKey(key); err == nil {
			return locked(l.key(0, name)), nil
		}
	case index.KindBucket:
		if name, err = index.ParseBucketKey(key); err == nil {
			return locked(l.bucket(name).RLocker()), nil
		}
	case index.KindUpload:
		if _, _, id, err = index.ParseUploadKey(key); err == nil {
			return locked(l.upload(id)), nil
		}
	case index.KindPart:
		if id, number, err = index.ParsePartKey(key); err == nil {
			upload := locked(l.upload(id).RLocker())
			part := locked(l.part(id, int(number)))
			return func() { part(); upload() }, nil
		}
	default:
		return func() {}, nil
	}
	return nil, err
}

func locked(l sync.Locker) (unlock func()) {
	l.Lock()
	return l.Unlock
}

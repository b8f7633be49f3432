package object

import (
	"coffer/disk"
	"coffer/kms"
	"coffer/object/internal/seal"
)

// kind says what a log record does to the index.
type kind uint8

// Kinds of records. Values are stored and never reused.
const (
	kindBucket       kind = 1  // a bucket begins, or its settings change
	kindBucketDelete kind = 2  // a bucket ends; it was empty
	kindObject       kind = 3  // an object becomes current
	kindTombstone    kind = 4  // a key has no object any more
	kindUpload       kind = 5  // a multipart upload begins
	kindAbort        kind = 6  // it ends without an object
	kindPart         kind = 7  // a part attempt succeeds
	kindComplete     kind = 8  // it ends: an object becomes current, and upload and parts vanish
	kindConfig       kind = 9  // a small system record
	kindMax          kind = 10 // first unused
)

// id16 is a random 128-bit identity: of a version, an upload or a stream of data.
type id16 = [16]byte

// etag is the 16 bytes that clients see as hex, with the number of parts behind them.
type etag struct {
	sum   id16
	parts uint32 // 0: not multipart
}

// sseRecord is how the data key of an object or upload is protected.
type sseRecord struct {
	mode        Mode
	epoch       uint32 // of the bucket key that wraps; 0 with a customer key
	wrapped     []byte
	customerMD5 string
	kmsKeyID    string
	bucketKey   bool
}

// stream is one sealed stream and where it lies. Without stripes its bytes are the record's packed data.
type stream struct {
	alg     seal.Algorithm
	id      id16
	size    int64 // plaintext bytes
	stripes []disk.Stripe
}

// partRecord is a part of an upload or of a multipart object.
type partRecord struct {
	number   int
	modified int64 // Unix ms
	etag     etag
	checksum Checksum
	wrapped  []byte // the part's data key under the upload's key
	stream

	claimed Checksum // by the client, of another algorithm than checksum, and true; until the upload is complete
}

// manifest points to the sealed encoding of a content that is too large for a record.
type manifest struct {
	epoch   uint32 // of the bucket key that wraps
	wrapped []byte
	stream
	bands []bandBytes // what the content and the manifest occupy, as it cannot be read while records are applied
}

// bandBytes is a number of bytes in a band.
type bandBytes struct {
	band  uint64
	bytes int64
}

// content is what an object consists of: exactly one of its forms.
type content struct {
	single   stream       // of a plain object; size 0 if it is empty
	parts    []partRecord // of a multipart object
	manifest *manifest    // of either: to be read from bulk
}

// objectRecord is the body of kindObject and kindComplete.
type objectRecord struct {
	kind     kind
	bucket   uint64
	key      string
	version  id16 // of a completed upload: its id
	modified int64
	size     int64
	etag     etag
	checksum Checksum
	sse      sseRecord
	content  content
	meta     Meta
}

// keyRecord is the body of kindTombstone (version zero) and kindAbort (version is the upload's id).
type keyRecord struct {
	kind    kind
	bucket  uint64
	key     string
	version id16
	at      int64
}

// uploadRecord is the body of kindUpload.
type uploadRecord struct {
	bucket    uint64
	key       string
	id        id16 // the version of the object to be
	at        int64
	algo      Algo
	composite bool
	sse       sseRecord
	meta      Meta
}

// uploadPart is the body of kindPart.
type uploadPart struct {
	bucket uint64
	key    string
	upload id16
	part   partRecord
}

// bucketRecord is the body of kindBucket.
type bucketRecord struct {
	id         uint64
	name       string
	created    int64
	owner      string
	region     string
	encryption *BucketEncryption
	keys       []kms.BucketKey // epochs ascend
}

// bucketDelete is the body of kindBucketDelete.
type bucketDelete struct {
	id   uint64
	name string
	at   int64
}

// configRecord is the body of kindConfig. A nil value deletes.
type configRecord struct {
	name  string
	value []byte
}

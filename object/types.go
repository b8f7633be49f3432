// Package object keeps buckets and objects: it seals bodies, stores them through the disk engine, and answers reads, lists
// and multipart uploads from a sealed index.
//
// It promises that a call which returned without error is durable, that a failed or aborted call leaves nothing visible, and
// that no byte derived from content leaves it unsealed for a disk. It knows nothing of HTTP, signatures or XML (package s3),
// and nothing of cells, bands or disks (package disk).
package object

import (
	"errors"
	"io"
	"time"

	"coffer/disk"
	"coffer/kms"
)

// Errors on which callers branch. Each is returned wrapped, with the object's name in the text.
var (
	ErrNoSuchBucket       = errors.New("no such bucket")
	ErrBucketExists       = errors.New("bucket exists")
	ErrBucketNotEmpty     = errors.New("bucket not empty")
	ErrNoSuchKey          = errors.New("no such key")
	ErrNoSuchUpload       = errors.New("no such upload")
	ErrInvalidPart        = errors.New("invalid part")         // complete names a part that is absent or has another ETag or checksum
	ErrInvalidPartOrder   = errors.New("invalid part order")   // complete's parts do not ascend
	ErrPartTooSmall       = errors.New("part too small")       // a part other than the last is below MinPartSize
	ErrTooLarge           = errors.New("entity too large")     // beyond MaxObjectSize or MaxPartSize
	ErrPreconditionFailed = errors.New("precondition failed")  // a Conditions field did not hold
	ErrConflict           = errors.New("conditional conflict") // the key changed while a conditional write ran
	ErrRange              = errors.New("range not satisfiable")
	ErrNoEncryption       = errors.New("no bucket encryption configuration")

	// ErrKeyRequired: the object is sealed with a customer key and none was given. ErrWrongKey: another one was given.
	// ErrKeyNotApplicable: a customer key was given for an object that is not sealed with one.
	ErrKeyRequired      = errors.New("customer key required")
	ErrWrongKey         = kms.ErrWrongKey
	ErrKeyNotApplicable = errors.New("customer key not applicable")
	// ErrPartKeyRequired: a part came without the customer key its upload was created with.
	// ErrPartKeyMismatch: a part's customer key is not that of its upload.
	ErrPartKeyRequired = errors.New("part without the upload's customer key")
	ErrPartKeyMismatch = errors.New("part key differs from the upload's")

	ErrFull     = disk.ErrFull
	ErrReadOnly = disk.ErrReadOnly
	ErrCorrupt  = disk.ErrCorrupt
	ErrClosed   = disk.ErrClosed
	// ErrIndex: the index failed, and with it the Store. Nothing is lost: the log has all.
	ErrIndex     = errors.New("index failed")
	ErrShortBody = errors.New("body shorter than its declared size")
	// ErrOverloaded: too many bodies are being stored at once, and this one found no memory in time.
	ErrOverloaded = errors.New("no memory for a stripe")

	// ErrBadDigest: complete claims another checksum for the object than its parts add up to. ErrSizeMismatch: another size.
	ErrBadDigest    = errors.New("checksum of the object differs")
	ErrSizeMismatch = errors.New("size of the object differs")
	// ErrNotSupported: the encryption mode needs an external key service. Nothing is ever stored in a weaker form instead.
	ErrNotSupported = errors.New("encryption mode not supported")
)

// Limits of the S3 API (docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html).
const (
	MinPartSize   = 5 << 20
	MaxPartSize   = 5 << 30
	MaxPutSize    = 5 << 30
	MaxParts      = 10000
	MaxObjectSize = 53_687_091_200_000 // 10,000 parts of 5 GiB: 48.8 TiB
	MaxKeyLen     = 1024               // bytes
	MaxMetaBytes  = 2048               // user metadata, names and values
	MaxListKeys   = 1000
)

// Mode is how an object's data key is protected.
type Mode uint8

const (
	ModeDefault  Mode = iota // in a request: what the bucket says, else ModeS3
	ModeS3                   // SSE-S3: the data key is wrapped by the bucket key
	ModeCustomer             // SSE-C: the data key is wrapped by the client's key alone
	ModeKMS                  // SSE-KMS (reserved for external key services)
	ModeDSSE                 // DSSE-KMS (reserved)
)

// SSE is the encryption a request asks for or an object has.
type SSE struct {
	Mode        Mode
	CustomerKey *[32]byte // request only, with ModeCustomer; never stored
	CustomerMD5 string    // base64 of the key's MD5 (SSE-C), stored sealed and echoed
	KMSKeyID    string
	BucketKey   bool
}

// BucketEncryption is a bucket's default encryption.
type BucketEncryption struct {
	Mode      Mode
	KMSKeyID  string
	BucketKey bool
}

// Bucket describes a bucket.
type Bucket struct {
	Name       string
	ID         uint64
	Created    time.Time
	Owner      string            // access key of the creator
	Region     string            // LocationConstraint as given, "" for none
	Encryption *BucketEncryption // nil: never set, SSE-S3 applies
}

// Algo names a checksum algorithm of the S3 API.
type Algo uint8

const (
	AlgoNone Algo = iota
	AlgoCRC64NVME
	AlgoCRC32
	AlgoCRC32C
	AlgoSHA1
	AlgoSHA256
)

// Checksum is a stored checksum: of the whole object, or composite over part checksums.
type Checksum struct {
	Algo      Algo
	Sum       []byte // raw, big-endian for CRCs
	Composite bool   // hash of part sums; shown with "-Parts" behind it
}

// Sums are the digests computed over a body: MD5 always when MD5 is set, and one checksum.
type Sums struct {
	Size     int64
	MD5      []byte // nil when not computed
	Checksum Checksum
}

// Meta is what a client may attach to an object. Header names are lower case without the x-amz-meta- prefix in User.
type Meta struct {
	ContentType        string
	ContentEncoding    string
	ContentDisposition string
	ContentLanguage    string
	CacheControl       string
	Expires            string
	WebsiteRedirect    string
	StorageClass       string
	User               map[string]string
	Tags               map[string]string
}

// Object describes the current version of an object.
type Object struct {
	Bucket   string
	Key      string
	Size     int64
	ETag     string // without quotes
	Modified time.Time
	Meta     Meta
	Checksum Checksum // Algo is AlgoNone if there is none
	SSE      SSE
	Parts    []Part // of a multipart object, in order; nil otherwise
	Version  string // "" or "null" until versioning
}

// Conditions are the preconditions of a write, decided under the key's lock at commit (RFC 9110 section 13; S3 conditional
// writes). Empty fields do not apply.
type Conditions struct {
	IfMatch     string // ETag without quotes, or "*"
	IfNoneMatch string // only "*" is defined by S3 for writes
}

// PutOptions are the facts about a body being stored.
type PutOptions struct {
	Size       int64 // bytes, -1 when unknown
	Meta       Meta
	SSE        SSE
	Conditions Conditions
	Checksum   Algo // to compute and keep; AlgoNone: CRC64NVME
	NeedMD5    bool // compute MD5 even where the ETag does not need it (Content-MD5 was sent)
	// Check is called once, after the last byte and before anything becomes visible; an error aborts the call and is returned as
	// it is. It is where trailers and digests are compared. May be nil.
	Check func(Sums) error
}

// GetOptions select what to read.
type GetOptions struct {
	SSE   SSE    // CustomerKey for SSE-C objects
	Range *Range // nil: everything
	Part  int    // part number, 0: not asked
}

// Range is a byte range of an object as in RFC 9110 section 14: First-Last inclusive; Last -1: to the end; First -1: the last
// Last bytes.
type Range struct{ First, Last int64 }

// Reader streams a body. Close must be called. WriteTo verifies each segment before it writes any byte of it.
type Reader interface {
	io.ReadCloser
	io.WriterTo
	Object() Object
	// Range returns the first byte and the length of what will be read.
	Range() (off, n int64)
}

// CopySource names what to copy.
type CopySource struct {
	Bucket, Key string
	SSE         SSE    // CustomerKey of the source
	Range       *Range // UploadPartCopy only
	// Check decides on the source's preconditions; an error aborts and is returned in a *SourceError. May be nil.
	Check func(Object) error
}

// SourceError is an error of what is to be copied, not of where it goes.
type SourceError struct{ Err error }

func (e *SourceError) Error() string { return "source: " + e.Err.Error() }

func (e *SourceError) Unwrap() error { return e.Err }

// CopyOptions say what the copy looks like.
type CopyOptions struct {
	ReplaceMeta bool // use Meta instead of the source's
	ReplaceTags bool
	Meta        Meta
	SSE         SSE
	Conditions  Conditions
	Checksum    Algo // AlgoNone: the source's
}

// ListOptions select a page of keys.
type ListOptions struct {
	Prefix    string
	Delimiter string
	After     string // start behind this key (start-after, marker); common prefixes at or before it are skipped
	Max       int    // 0..MaxListKeys
}

// ListPage is a page of keys in byte order. Next is the After of the next page when Truncated.
type ListPage struct {
	Objects   []Object // without Meta.User, Parts
	Prefixes  []string
	Truncated bool
	Next      string
}

// ListBucketsOptions select a page of buckets.
type ListBucketsOptions struct {
	Prefix string
	After  string
	Max    int // 0: all
}

// UploadOptions are given when a multipart upload begins.
type UploadOptions struct {
	Meta     Meta
	SSE      SSE
	Checksum Algo // AlgoNone: CRC64NVME full object
	// Composite asks for a checksum of part checksums; otherwise the part CRCs are combined to that of the full object.
	Composite bool
}

// Upload describes a multipart upload in progress.
type Upload struct {
	ID        string
	Bucket    string
	Key       string
	Initiated time.Time
	SSE       SSE
	Checksum  Algo
	Composite bool
	Meta      Meta
}

// Part describes one part of an upload or of a finished object.
type Part struct {
	Number   int
	Size     int64
	ETag     string
	Modified time.Time
	Checksum Checksum
}

// PartOptions are the facts about a part being stored.
type PartOptions struct {
	Size     int64
	SSE      SSE
	Checksum Algo // AlgoNone: the upload's
	NeedMD5  bool
	Check    func(Sums) error
}

// CompletePart is a client's claim about a part.
type CompletePart struct {
	Number   int
	ETag     string
	Checksum Checksum // AlgoNone: not claimed
}

// CompleteOptions finish an upload.
type CompleteOptions struct {
	Parts      []CompletePart
	Checksum   Checksum // of the object as the client sees it; AlgoNone: not claimed
	Size       int64    // x-amz-mp-object-size, -1: not claimed
	Conditions Conditions
	SSE        SSE // customer key, optional
}

// ListUploadsOptions select a page of uploads.
type ListUploadsOptions struct {
	Prefix, Delimiter   string
	KeyMarker, IDMarker string
	Max                 int
}

// UploadPage is a page of uploads.
type UploadPage struct {
	Uploads               []Upload
	Prefixes              []string
	Truncated             bool
	NextKeyMarker, NextID string
}

// PartPage is a page of an upload's parts.
type PartPage struct {
	Upload    Upload
	Parts     []Part
	Truncated bool
	Next      int
}

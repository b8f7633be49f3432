package s3

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base64"
	"hash"
	"hash/crc32"
	"net/http"
	"strconv"
	"strings"

	"github.com/minio/crc64nvme"

	"coffer/object"
)

// algorithm is one checksum algorithm of the API ("Checking object integrity", S3 User Guide).
type algorithm struct {
	algo   object.Algo
	name   string // x-amz-checksum-algorithm, x-amz-sdk-checksum-algorithm
	header string
	size   int // bytes of a sum
	new    func() hash.Hash
	// full and composite say which checksum types a multipart upload may have; FULL_OBJECT is the default only where composite is false.
	full, composite bool
}

var algorithms = []algorithm{
	{object.AlgoCRC64NVME, "CRC64NVME", "x-amz-checksum-crc64nvme", 8, func() hash.Hash { return crc64nvme.New() }, true, false},
	{object.AlgoCRC32, "CRC32", "x-amz-checksum-crc32", 4, func() hash.Hash { return crc32.NewIEEE() }, true, true},
	{object.AlgoCRC32C, "CRC32C", "x-amz-checksum-crc32c", 4, func() hash.Hash { return crc32.New(crc32.MakeTable(crc32.Castagnoli)) }, true, true},
	{object.AlgoSHA1, "SHA1", "x-amz-checksum-sha1", sha1.Size, sha1.New, false, true},
	{object.AlgoSHA256, "SHA256", "x-amz-checksum-sha256", sha256.Size, sha256.New, false, true},
}

// Values of x-amz-checksum-type.
const (
	typeFull      = "FULL_OBJECT"
	typeComposite = "COMPOSITE"
)

func algorithmOf(a object.Algo) *algorithm {
	for i := range algorithms {
		if algorithms[i].algo == a {
			return &algorithms[i]
		}
	}
	return nil
}

func algorithmNamed(name string) *algorithm {
	for i := range algorithms {
		if strings.EqualFold(algorithms[i].name, name) {
			return &algorithms[i]
		}
	}
	return nil
}

// algoName returns the API's name of a, "" for none.
func algoName(a object.Algo) string {
	if al := algorithmOf(a); al != nil {
		return al.name
	}
	return ""
}

// claim is what a request says about the checksum of its body. The zero claim says nothing.
type claim struct {
	alg     *algorithm // nil: no claim
	sum     []byte     // nil: it comes in the trailer
	md5     []byte     // Content-MD5
	trailer bool
}

func (cl claim) algo() object.Algo {
	if cl.alg == nil {
		return object.AlgoNone
	}
	return cl.alg.algo
}

// Headers that begin like checksums and are none.
var notChecksums = map[string]bool{"X-Amz-Checksum-Mode": true, "X-Amz-Checksum-Algorithm": true, "X-Amz-Checksum-Type": true}

const checksumPrefix = "X-Amz-Checksum-"

// parseClaim reads Content-MD5, x-amz-checksum-*, x-amz-trailer and x-amz-sdk-checksum-algorithm.
func parseClaim(h http.Header) (claim, error) {
	var cl claim
	if v, ok := h["Content-Md5"]; ok {
		sum, err := base64.StdEncoding.DecodeString(v[0])
		if err != nil || len(sum) != md5.Size {
			return cl, errInvalidDigest
		}
		cl.md5 = sum
	}
	found := 0
	for name, values := range h {
		if !strings.HasPrefix(name, checksumPrefix) || notChecksums[name] {
			continue
		}
		alg := algorithmNamed(name[len(checksumPrefix):])
		if alg == nil {
			return cl, errInvalidRequest.say("The algorithm type you specified in x-amz-checksum- header is invalid.")
		}
		if found++; found > 1 || len(values) > 1 {
			return cl, errInvalidRequest.say("Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
		}
		cl.alg = alg
		if err := cl.setSum(values[0]); err != nil {
			return cl, err
		}
	}
	if t := h.Get("X-Amz-Trailer"); t != "" {
		alg := algorithmNamed(strings.TrimPrefix(strings.ToLower(strings.TrimSpace(t)), strings.ToLower(checksumPrefix)))
		switch {
		case alg == nil:
			return cl, errInvalidRequest.say("The value specified in the x-amz-trailer header is not supported")
		case cl.alg != nil:
			return cl, errInvalidRequest.say("Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")
		}
		cl.alg, cl.trailer = alg, true
	}
	return cl, cl.checkSDK(h.Get("X-Amz-Sdk-Checksum-Algorithm"))
}

// checkSDK compares the algorithm that the SDK announces with the one that came. A request without a body to sum, such as
// CopyObject, has another header for what it wants.
func (cl claim) checkSDK(name string) error {
	if name == "" {
		return nil
	}
	alg := algorithmNamed(name)
	switch {
	case alg == nil, cl.alg != nil && cl.alg != alg:
		return errInvalidRequest.say("Value for x-amz-sdk-checksum-algorithm header is invalid.")
	case cl.alg == nil:
		return errInvalidRequest.say("x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found.")
	}
	return nil
}

// setSum decodes a sum in base64.
func (cl *claim) setSum(v string) error {
	sum, err := base64.StdEncoding.DecodeString(v)
	if err != nil || len(sum) != cl.alg.size {
		return errInvalidRequest.say("Value for %s header is invalid.", cl.alg.header)
	}
	cl.sum = sum
	return nil
}

// cutParts takes the number of parts off the composite sum in h, as "sum-parts", and returns it, 0 if there is none. Only
// CompleteMultipartUpload may claim such a sum.
func cutParts(h http.Header) (parts int, err error) {
	for i := range algorithms {
		sum, n, ok := strings.Cut(h.Get(algorithms[i].header), "-")
		if !ok {
			continue
		}
		if parts, err = strconv.Atoi(n); err != nil || parts < 1 || parts > object.MaxParts {
			return 0, errInvalidRequest.say("Value for %s header is invalid.", algorithms[i].header)
		}
		h.Set(algorithms[i].header, sum)
	}
	return parts, nil
}

// check compares what was claimed with what was computed over the body.
func (cl claim) check(sums object.Sums) error {
	if cl.md5 != nil && !bytes.Equal(cl.md5, sums.MD5) {
		return errBadDigest
	}
	if cl.alg != nil && (sums.Checksum.Algo != cl.alg.algo || !bytes.Equal(cl.sum, sums.Checksum.Sum)) {
		return errBadDigest.say("The %s you specified did not match the calculated checksum.", cl.alg.name)
	}
	return nil
}

// checksumText is a checksum as headers and documents show it.
func checksumText(sum object.Checksum, parts int) string {
	s := base64.StdEncoding.EncodeToString(sum.Sum)
	if sum.Composite {
		s += "-" + strconv.Itoa(parts)
	}
	return s
}

func checksumType(sum object.Checksum) string {
	switch {
	case sum.Algo == object.AlgoNone:
		return ""
	case sum.Composite:
		return typeComposite
	}
	return typeFull
}

// setChecksum puts a checksum into the headers of an answer.
func setChecksum(h http.Header, sum object.Checksum, parts int) {
	if alg := algorithmOf(sum.Algo); alg != nil {
		set(h, alg.header, checksumText(sum, parts))
		set(h, "x-amz-checksum-type", checksumType(sum))
	}
}

// checksumDoc puts a checksum into a document.
func checksumDoc(sum object.Checksum, parts int) (x checksumXML) {
	if sum.Algo != object.AlgoNone {
		*x.field(sum.Algo) = checksumText(sum, parts)
	}
	return x
}

func (x *checksumXML) field(a object.Algo) *string {
	switch a {
	case object.AlgoCRC32:
		return &x.ChecksumCRC32
	case object.AlgoCRC32C:
		return &x.ChecksumCRC32C
	case object.AlgoSHA1:
		return &x.ChecksumSHA1
	case object.AlgoSHA256:
		return &x.ChecksumSHA256
	}
	return &x.ChecksumCRC64NVME
}

// claimed reads the one checksum that a part of a CompleteMultipartUpload document may claim.
func (x *checksumXML) claimed() (object.Checksum, error) {
	var sum object.Checksum
	for i := range algorithms {
		v := *x.field(algorithms[i].algo)
		if v == "" {
			continue
		}
		cl := claim{alg: &algorithms[i]}
		if err := cl.setSum(v); err != nil || sum.Algo != object.AlgoNone {
			return sum, errMalformedXML
		}
		sum = object.Checksum{Algo: cl.alg.algo, Sum: cl.sum}
	}
	return sum, nil
}

// uploadChecksum reads what CreateMultipartUpload asks for: x-amz-checksum-algorithm and x-amz-checksum-type.
func uploadChecksum(h http.Header) (algo object.Algo, composite bool, err error) {
	name, typ := h.Get("X-Amz-Checksum-Algorithm"), h.Get("X-Amz-Checksum-Type")
	if name == "" {
		if typ != "" {
			return 0, false, errInvalidRequest.say("The x-amz-checksum-type header can only be used with the x-amz-checksum-algorithm header.")
		}
		return object.AlgoNone, false, nil
	}
	alg := algorithmNamed(name)
	if alg == nil {
		return 0, false, errInvalidRequest.say("Checksum algorithm provided is unsupported. Please try again with any of the valid types: [CRC32, CRC32C, CRC64NVME, SHA1, SHA256]")
	}
	switch {
	case typ == "":
		return alg.algo, alg.composite, nil
	case typ == typeFull && alg.full, typ == typeComposite && alg.composite:
		return alg.algo, typ == typeComposite, nil
	case typ == typeFull || typ == typeComposite:
		return 0, false, errInvalidRequest.say("The %s checksum type cannot be used with the %s checksum algorithm.", typ, strings.ToLower(alg.name))
	}
	return 0, false, errInvalidRequest.say("Value for x-amz-checksum-type header is invalid.")
}

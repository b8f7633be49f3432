package s3

import (
	"crypto/md5"
	"crypto/subtle"
	"encoding/base64"
	"net/http"
	"slices"

	"coffer/object"
)

// Headers of server-side encryption (S3 User Guide, "Protecting data with encryption").
const (
	headerSSE            = "x-amz-server-side-encryption"
	headerSSEKeyID       = "x-amz-server-side-encryption-aws-kms-key-id"
	headerSSEContext     = "x-amz-server-side-encryption-context"
	headerSSEBucketKey   = "x-amz-server-side-encryption-bucket-key-enabled"
	headerCustomerAlgo   = "x-amz-server-side-encryption-customer-algorithm"
	headerCustomerKey    = "x-amz-server-side-encryption-customer-key"
	headerCustomerMD5    = "x-amz-server-side-encryption-customer-key-MD5"
	headerCopyCustomer   = "x-amz-copy-source-server-side-encryption-customer-"
	headerTargetCustomer = "x-amz-server-side-encryption-customer-"

	sseAES256 = "AES256"
	sseKMS    = "aws:kms"
	sseDSSE   = "aws:kms:dsse"
)

// writeSSE reads the encryption that PutObject, CopyObject or CreateMultipartUpload asks for.
func writeSSE(r *http.Request) (object.SSE, error) {
	sse, err := customerSSE(r, headerTargetCustomer)
	if err != nil {
		return sse, err
	}
	method := r.Header.Get(headerSSE)
	if sse.Mode == object.ModeCustomer && (method != "" || r.Header.Get(headerSSEKeyID) != "") {
		return sse, invalidArgument(headerSSE, method, "Server Side Encryption with Customer provided key is incompatible with the encryption method specified")
	}
	if method == sseKMS || method == sseDSSE {
		return sse, notImplementedHeader(headerSSE)
	}
	if r.Header.Get(headerSSEKeyID) != "" || r.Header.Get(headerSSEContext) != "" {
		return sse, invalidArgument(headerSSE, method, "Server Side Encryption with AWS KMS managed key requires HTTP header x-amz-server-side-encryption : aws:kms")
	}
	switch {
	case len(r.Header.Values(headerSSE)) == 0:
	case method == sseAES256:
		sse.Mode = object.ModeS3
	default:
		return sse, invalidArgument(headerSSE, method, "The encryption method specified is not supported")
	}
	return sse, nil
}

// readSSE reads the customer key of a request that may carry no other encryption header: GET, HEAD and parts. AWS refuses the
// header of SSE-S3 and SSE-KMS there with 400.
func readSSE(r *http.Request) (object.SSE, error) {
	for _, name := range []string{headerSSE, headerSSEKeyID, headerSSEContext, headerSSEBucketKey} {
		if v := r.Header.Get(name); v != "" {
			return object.SSE{}, invalidArgument(name, v, "%s header is not supported for this operation.", name)
		}
	}
	return customerSSE(r, headerTargetCustomer)
}

// customerSSE reads the three headers of a customer key that begin with prefix. Without any the mode is ModeDefault.
func customerSSE(r *http.Request, prefix string) (object.SSE, error) {
	var sse object.SSE
	algo, key, sum := r.Header.Get(prefix+"algorithm"), r.Header.Get(prefix+"key"), r.Header.Get(prefix+"key-MD5")
	if !slices.ContainsFunc([]string{"algorithm", "key", "key-MD5"}, func(name string) bool { return len(r.Header.Values(prefix+name)) > 0 }) {
		return sse, nil // one that is there and empty is a key that got lost
	}
	const must = "Requests specifying Server Side Encryption with Customer provided keys must "
	switch {
	case r.TLS == nil:
		return sse, errInvalidRequest.say(must + "be made over a secure connection.")
	case algo != sseAES256:
		return sse, invalidArgument(prefix+"algorithm", algo, must+"provide a valid encryption algorithm.")
	case key == "":
		return sse, invalidArgument(prefix+"key", "null", must+"provide an appropriate secret key.")
	case sum == "":
		return sse, invalidArgument(prefix+"key-MD5", "null", must+"provide the client calculated MD5 of the secret key.")
	}
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(raw) != 32 {
		return sse, invalidArgument(prefix+"key", "null", "The secret key was invalid for the specified algorithm.")
	}
	have := md5.Sum(raw)
	want, err := base64.StdEncoding.DecodeString(sum)
	if err != nil || subtle.ConstantTimeCompare(have[:], want) != 1 {
		return sse, invalidArgument(prefix+"key-MD5", sum, "The calculated MD5 hash of the key did not match the hash that was provided.")
	}
	k := [32]byte(raw)
	clear(raw)
	return object.SSE{Mode: object.ModeCustomer, CustomerKey: &k, CustomerMD5: sum}, nil
}

// setSSE tells how an object is encrypted.
func setSSE(h http.Header, sse object.SSE) {
	switch sse.Mode {
	case object.ModeCustomer:
		set(h, headerCustomerAlgo, sseAES256)
		set(h, headerCustomerMD5, sse.CustomerMD5)
	case object.ModeS3, object.ModeDefault:
		set(h, headerSSE, sseAES256)
	}
}

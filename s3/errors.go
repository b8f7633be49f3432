package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"coffer/object"
	"coffer/s3/internal/sigv4"
)

// apiError is an error as the client sees it: code, status and fixed text of the S3 API reference ("Error responses"). The cause
// is for the log alone.
type apiError struct {
	code    string
	status  int
	message string
	detail  errorDetail
	cause   error
}

// isFault reports whether an error is a fault of ours that the log must tell, and not a state that clients may meet often.
func (e *apiError) isFault() bool {
	switch e.status {
	case http.StatusNotImplemented, http.StatusServiceUnavailable, http.StatusInsufficientStorage:
		return false
	}
	return e.status >= http.StatusInternalServerError
}

// errorDetail holds the elements that AWS adds to some errors. Empty ones are left out of the document.
type errorDetail struct {
	BucketName          string  `xml:",omitempty"`
	Key                 xmlText `xml:",omitempty"`
	UploadID            string  `xml:"UploadId,omitempty"`
	VersionID           string  `xml:"VersionId,omitempty"`
	ArgumentName        string  `xml:",omitempty"`
	ArgumentValue       xmlText `xml:",omitempty"`
	Header              string  `xml:",omitempty"`
	Condition           string  `xml:",omitempty"`
	RangeRequested      string  `xml:",omitempty"`
	ActualObjectSize    string  `xml:",omitempty"`
	PartNumberRequested string  `xml:",omitempty"`
	ActualPartCount     string  `xml:",omitempty"`
	PartNumber          string  `xml:",omitempty"`
	ProposedSize        string  `xml:",omitempty"`
	MinSizeAllowed      string  `xml:",omitempty"`
	MaxSizeAllowed      string  `xml:",omitempty"`
	Size                string  `xml:",omitempty"`
	Method              string  `xml:",omitempty"`
	ResourceType        string  `xml:",omitempty"`
	Region              string  `xml:",omitempty"`
	StringToSign        xmlText `xml:",omitempty"`
	CanonicalRequest    xmlText `xml:",omitempty"`
	ClientSHA256        string  `xml:"ClientComputedContentSHA256,omitempty"`
	ServerSHA256        string  `xml:"S3ComputedContentSHA256,omitempty"`
}

func (e *apiError) Error() string {
	if e.cause != nil {
		return e.code + ": " + e.cause.Error()
	}
	return e.code + ": " + e.message
}

func (e *apiError) Unwrap() error { return e.cause }

// Is makes errors.Is compare codes, so that a prototype below matches its decorated copies.
func (e *apiError) Is(target error) bool {
	t, ok := target.(*apiError)
	return ok && t.code == e.code
}

// with returns a copy that carries the detail elements.
func (e *apiError) with(d errorDetail) *apiError {
	c := *e
	c.detail = d
	return &c
}

// say returns a copy with another text.
func (e *apiError) say(format string, args ...any) *apiError {
	c := *e
	c.message = fmt.Sprintf(format, args...)
	return &c
}

// because returns a copy that logs cause.
func (e *apiError) because(cause error) *apiError {
	c := *e
	c.cause = cause
	return &c
}

// The codes of the API that this package answers. They are prototypes: never changed, only copied.
var (
	errAccessDenied           = &apiError{code: "AccessDenied", status: 403, message: "Access Denied"}
	errAccessForbidden        = &apiError{code: "AccessForbidden", status: 403, message: "CORSResponse: CORS is not enabled for this bucket."}
	errACLNotSupported        = &apiError{code: "AccessControlListNotSupported", status: 400, message: "The bucket does not allow ACLs"}
	errBadTagCount            = &apiError{code: "BadRequest", status: 400, message: "Object tags cannot be greater than 10"}
	errBadDigest              = &apiError{code: "BadDigest", status: 400, message: "The Content-MD5 you specified did not match what we received."}
	errBucketACLOwnership     = &apiError{code: "InvalidBucketAclWithObjectOwnership", status: 400, message: "Bucket cannot have ACLs set with ObjectOwnership's BucketOwnerEnforced setting"}
	errBucketExists           = &apiError{code: "BucketAlreadyExists", status: 409, message: "The requested bucket name is not available. The bucket namespace is shared by all users of the system. Please select a different name and try again."}
	errBucketNotEmpty         = &apiError{code: "BucketNotEmpty", status: 409, message: "The bucket you tried to delete is not empty"}
	errBucketOwned            = &apiError{code: "BucketAlreadyOwnedByYou", status: 409, message: "Your previous request to create the named bucket succeeded and you already own it."}
	errConditionalConflict    = &apiError{code: "ConditionalRequestConflict", status: 409, message: "The conditional request cannot succeed due to a conflicting operation against this resource."}
	errEntityTooLarge         = &apiError{code: "EntityTooLarge", status: 400, message: "Your proposed upload exceeds the maximum allowed size"}
	errEntityTooSmall         = &apiError{code: "EntityTooSmall", status: 400, message: "Your proposed upload is smaller than the minimum allowed size"}
	errIncompleteBody         = &apiError{code: "IncompleteBody", status: 400, message: "You did not provide the number of bytes specified by the Content-Length HTTP header"}
	errInternal               = &apiError{code: "InternalError", status: 500, message: "We encountered an internal error. Please try again."}
	errInvalidArgument        = &apiError{code: "InvalidArgument", status: 400, message: "Invalid Argument"}
	errInvalidBucketName      = &apiError{code: "InvalidBucketName", status: 400, message: "The specified bucket is not valid."}
	errInvalidDigest          = &apiError{code: "InvalidDigest", status: 400, message: "The Content-MD5 you specified was invalid."}
	errInvalidLocation        = &apiError{code: "InvalidLocationConstraint", status: 400, message: "The specified location-constraint is not valid"}
	errInvalidPart            = &apiError{code: "InvalidPart", status: 400, message: "One or more of the specified parts could not be found.  The part may not have been uploaded, or the specified entity tag may not match the part's entity tag."}
	errInvalidPartNumber      = &apiError{code: "InvalidPartNumber", status: 416, message: "The requested partnumber is not satisfiable"}
	errInvalidPartOrder       = &apiError{code: "InvalidPartOrder", status: 400, message: "The list of parts was not in ascending order. Parts must be ordered by part number."}
	errInvalidRange           = &apiError{code: "InvalidRange", status: 416, message: "The requested range is not satisfiable"}
	errInvalidRedirect        = &apiError{code: "InvalidRedirectLocation", status: 400, message: "The website redirect location must have a prefix of 'http://' or 'https://' or '/'."}
	errInvalidRequest         = &apiError{code: "InvalidRequest", status: 400, message: "Invalid Request"}
	errInvalidStorageClass    = &apiError{code: "InvalidStorageClass", status: 400, message: "The storage class you specified is not valid"}
	errInvalidTag             = &apiError{code: "InvalidTag", status: 400, message: "The tag provided was not a valid tag."}
	errInvalidURI             = &apiError{code: "InvalidURI", status: 400, message: "Couldn't parse the specified URI."}
	errKeyTooLong             = &apiError{code: "KeyTooLongError", status: 400, message: "Your key is too long"}
	errMalformedTrailer       = &apiError{code: "MalformedTrailerError", status: 400, message: "The request contained trailing data that was not well-formed or did not conform to our published schema."}
	errMalformedXML           = &apiError{code: "MalformedXML", status: 400, message: "The XML you provided was not well-formed or did not validate against our published schema"}
	errMessageTooLong         = &apiError{code: "MaxMessageLengthExceeded", status: 400, message: "Your request was too large."}
	errMetadataTooLarge       = &apiError{code: "MetadataTooLarge", status: 400, message: "Your metadata headers exceed the maximum allowed metadata size"}
	errMethodNotAllowed       = &apiError{code: "MethodNotAllowed", status: 405, message: "The specified method is not allowed against this resource."}
	errMissingContentLength   = &apiError{code: "MissingContentLength", status: 411, message: "You must provide the Content-Length HTTP header."}
	errMissingBody            = &apiError{code: "MissingRequestBodyError", status: 400, message: "Request Body is empty"}
	errNoCORS                 = &apiError{code: "NoSuchCORSConfiguration", status: 404, message: "The CORS configuration does not exist"}
	errNoEncryption           = &apiError{code: "ServerSideEncryptionConfigurationNotFoundError", status: 404, message: "The server side encryption configuration was not found"}
	errNoLifecycle            = &apiError{code: "NoSuchLifecycleConfiguration", status: 404, message: "The lifecycle configuration does not exist"}
	errNoObjectLock           = &apiError{code: "ObjectLockConfigurationNotFoundError", status: 404, message: "Object Lock configuration does not exist for this bucket"}
	errNoPolicy               = &apiError{code: "NoSuchBucketPolicy", status: 404, message: "The bucket policy does not exist"}
	errNoPublicAccessBlock    = &apiError{code: "NoSuchPublicAccessBlockConfiguration", status: 404, message: "The public access block configuration was not found"}
	errNoReplication          = &apiError{code: "ReplicationConfigurationNotFoundError", status: 404, message: "The replication configuration was not found"}
	errNoSuchBucket           = &apiError{code: "NoSuchBucket", status: 404, message: "The specified bucket does not exist"}
	errNoSuchKey              = &apiError{code: "NoSuchKey", status: 404, message: "The specified key does not exist."}
	errNoSuchUpload           = &apiError{code: "NoSuchUpload", status: 404, message: "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."}
	errNoSuchVersion          = &apiError{code: "NoSuchVersion", status: 404, message: "The specified version does not exist."}
	errNoTagSet               = &apiError{code: "NoSuchTagSet", status: 404, message: "The TagSet does not exist"}
	errNoWebsite              = &apiError{code: "NoSuchWebsiteConfiguration", status: 404, message: "The specified bucket does not have a website configuration"}
	errNotImplemented         = &apiError{code: "NotImplemented", status: 501, message: "A header you provided implies functionality that is not implemented"}
	errNotModified            = &apiError{code: "NotModified", status: 304, message: "Not Modified"}
	errPreconditionFailed     = &apiError{code: "PreconditionFailed", status: 412, message: "At least one of the pre-conditions you specified did not hold"}
	errRequestTimeout         = &apiError{code: "RequestTimeout", status: 400, message: "Your socket connection to the server was not read from or written to within the timeout period. Idle connections will be closed."}
	errServiceUnavailable     = &apiError{code: "ServiceUnavailable", status: 503, message: "Reduce your request rate."}
	errSlowDown               = &apiError{code: "SlowDown", status: 503, message: "Please reduce your request rate."}
	errStorageFull            = &apiError{code: "InsufficientStorage", status: 507, message: "The storage array is full. Delete objects or add disks."}
	errUserKeyMustBeSpecified = &apiError{code: "UserKeyMustBeSpecified", status: 400, message: "The key must be specified."}
)

// Texts of the customer key rules; AWS answers them under InvalidRequest or InvalidArgument.
var (
	errKeyRequired      = errInvalidRequest.say("The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object.")
	errKeyNotApplicable = errInvalidRequest.say("The encryption parameters are not applicable to this object.")
	errPartKeyRequired  = errInvalidRequest.say("The multipart upload initiate requested encryption. Subsequent part requests must include the appropriate encryption parameters.")
	errNoLockOnBucket   = errInvalidRequest.say("Bucket is missing Object Lock Configuration")
	errPartKeyMismatch  = errInvalidArgument.say("The provided encryption parameters did not match the ones used originally.")
)

// sigv4Status holds the status of each code that the verification of signatures and of streamed bodies answers with. Their texts
// come with the error.
var sigv4Status = map[sigv4.Code]int{
	sigv4.AccessDenied:                      http.StatusForbidden,
	sigv4.AuthorizationHeaderMalformed:      http.StatusBadRequest,
	sigv4.AuthorizationQueryParametersError: http.StatusBadRequest,
	sigv4.IncompleteBody:                    http.StatusBadRequest,
	sigv4.InvalidAccessKeyID:                http.StatusForbidden,
	sigv4.InvalidArgument:                   http.StatusBadRequest,
	sigv4.InvalidRequest:                    http.StatusBadRequest,
	sigv4.InvalidToken:                      http.StatusBadRequest,
	sigv4.InvalidURI:                        http.StatusBadRequest,
	sigv4.MalformedTrailerError:             http.StatusBadRequest,
	sigv4.MissingContentLength:              http.StatusLengthRequired,
	sigv4.RequestTimeTooSkewed:              http.StatusForbidden,
	sigv4.SignatureDoesNotMatch:             http.StatusForbidden,
	sigv4.XAmzContentSHA256Mismatch:         http.StatusBadRequest,
}

// sigv4Error translates a refusal of packages sigv4 and chunked. AWS shows the client what the server computed; a canonical
// request that holds a customer key is left out, since documents end up in logs.
func sigv4Error(e *sigv4.Error) *apiError {
	status, ok := sigv4Status[e.Code]
	if !ok {
		return errInternal.because(e)
	}
	d := errorDetail{Region: e.Region, StringToSign: xmlText(e.StringToSign), ClientSHA256: e.ClientSHA256, ServerSHA256: e.ServerSHA256}
	if !strings.Contains(e.CanonicalRequest, headerCustomerKey+":") {
		d.CanonicalRequest = xmlText(e.CanonicalRequest)
	}
	return &apiError{code: string(e.Code), status: status, message: e.Message, detail: d, cause: e.Err}
}

// invalidArgument is an InvalidArgument error that names the argument.
func invalidArgument(name, value, format string, args ...any) *apiError {
	return errInvalidArgument.say(format, args...).with(errorDetail{ArgumentName: name, ArgumentValue: xmlText(value)})
}

// notImplementedHeader answers a header whose function is missing.
func notImplementedHeader(name string) *apiError {
	return errNotImplemented.with(errorDetail{Header: name})
}

// storeErrors is the one table from the store's errors to the API's.
var storeErrors = []struct {
	err error
	api *apiError
}{
	{object.ErrNoSuchBucket, errNoSuchBucket},
	{object.ErrBucketExists, errBucketExists},
	{object.ErrBucketNotEmpty, errBucketNotEmpty},
	{object.ErrNoSuchKey, errNoSuchKey},
	{object.ErrNoSuchUpload, errNoSuchUpload},
	{object.ErrInvalidPart, errInvalidPart},
	{object.ErrInvalidPartOrder, errInvalidPartOrder},
	{object.ErrPartTooSmall, errEntityTooSmall.with(errorDetail{MinSizeAllowed: strconv.Itoa(object.MinPartSize)})},
	{object.ErrTooLarge, errEntityTooLarge},
	{object.ErrPreconditionFailed, errPreconditionFailed},
	{object.ErrConflict, errConditionalConflict},
	{object.ErrRange, errInvalidRange},
	{object.ErrNoEncryption, errNoEncryption},
	{object.ErrKeyRequired, errKeyRequired},
	{object.ErrKeyNotApplicable, errKeyNotApplicable},
	{object.ErrPartKeyRequired, errPartKeyRequired},
	{object.ErrPartKeyMismatch, errPartKeyMismatch},
	{object.ErrFull, errStorageFull},
	{object.ErrReadOnly, errServiceUnavailable},
	{object.ErrClosed, errServiceUnavailable},
	{object.ErrOverloaded, errSlowDown},
	{object.ErrIndex, errServiceUnavailable},
	{object.ErrShortBody, errIncompleteBody},
	{object.ErrBadDigest, errBadDigest.say("The checksum you specified did not match the calculated checksum.")},
	{object.ErrSizeMismatch, errInvalidRequest.say("The provided 'x-amz-mp-object-size' header does not match what was computed.")},
	{object.ErrNotSupported, errNotImplemented},
	{io.ErrUnexpectedEOF, errIncompleteBody},
	{errIdle, errRequestTimeout},
	{context.DeadlineExceeded, errRequestTimeout},
	{context.Canceled, errRequestTimeout},
}

// apiErrorOf turns any error into what the client is told, and fills in the names that the code calls for. An error that is not
// in a table is an InternalError.
func (s *Server) apiErrorOf(err error, bucket, key string) *apiError {
	e, ok := errors.AsType[*apiError](err)
	if !ok {
		e = s.lookupError(err).because(err)
	}
	switch e.code {
	case errNoSuchBucket.code, errBucketNotEmpty.code, errBucketOwned.code, errBucketExists.code, errNoPolicy.code, errNoCORS.code,
		errNoTagSet.code, errNoLifecycle.code, errNoWebsite.code, errNoEncryption.code, errNoPublicAccessBlock.code,
		errInvalidBucketName.code, errNoReplication.code, errNoObjectLock.code:
		if e.detail.BucketName == "" {
			d := e.detail
			d.BucketName = bucket
			e = e.with(d)
		}
	case errNoSuchKey.code:
		if e.detail.Key == "" {
			e = e.with(errorDetail{Key: xmlText(key)})
		}
	}
	return e
}

func (s *Server) lookupError(err error) *apiError {
	if errors.Is(err, object.ErrWrongKey) {
		if s.opt.WrongCustomerKeyStatus == http.StatusBadRequest {
			return errPartKeyMismatch
		}
		return errAccessDenied
	}
	if e, ok := errors.AsType[*sigv4.Error](err); ok {
		return sigv4Error(e)
	}
	for _, m := range storeErrors {
		if errors.Is(err, m.err) {
			return m.api
		}
	}
	return errInternal
}

package sigv4

import "errors"

// ErrUnknownAccessKey is what a Lookup returns, wrapped or not, for an access key that does not exist.
var ErrUnknownAccessKey = errors.New("unknown access key")

// Code is an error code of the S3 API (docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html).
type Code string

// The codes that this package and package chunked answer with, and the HTTP status that AWS sends for each.
const (
	AccessDenied                      Code = "AccessDenied"                      // 403
	AuthorizationHeaderMalformed      Code = "AuthorizationHeaderMalformed"      // 400
	AuthorizationQueryParametersError Code = "AuthorizationQueryParametersError" // 400
	IncompleteBody                    Code = "IncompleteBody"                    // 400
	InvalidAccessKeyID                Code = "InvalidAccessKeyId"                // 403
	InvalidArgument                   Code = "InvalidArgument"                   // 400
	InvalidRequest                    Code = "InvalidRequest"                    // 400
	InvalidToken                      Code = "InvalidToken"                      // 400
	InvalidURI                        Code = "InvalidURI"                        // 400
	MalformedTrailerError             Code = "MalformedTrailerError"             // 400
	MissingContentLength              Code = "MissingContentLength"              // 411
	RequestTimeTooSkewed              Code = "RequestTimeTooSkewed"              // 403
	SignatureDoesNotMatch             Code = "SignatureDoesNotMatch"             // 403
	XAmzContentSHA256Mismatch         Code = "XAmzContentSHA256Mismatch"         // 400
)

// Error is a refusal with the code and the text that AWS gives the client. Neither field ever holds a secret of ours.
type Error struct {
	Code    Code
	Message string

	// Anonymous says that the request carried no credentials at all; Code is AccessDenied.
	Anonymous bool
	// Region is the region that the server expected, set when the request was signed for another one.
	Region string
	// CanonicalRequest and StringToSign are what the server computed, set with SignatureDoesNotMatch of a request (not of a
	// chunk). AWS shows them to the client. They hold the client's signed headers, which may include an SSE-C key: send them to
	// that client over its own connection if at all, and never log them.
	CanonicalRequest string
	StringToSign     string
	// Digests of the body, as signed and as computed.
	ClientSHA256, ServerSHA256 string
	// Err is the cause for the log, if there is one.
	Err error
}

func (e *Error) Error() string {
	s := string(e.Code) + ": " + e.Message
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

func refuse(code Code, message string) *Error { return &Error{Code: code, Message: message} }

// malformed refuses authentication data by the code that belongs to where it stood.
func (a *auth) malformed(message string) *Error {
	if a.presigned {
		return refuse(AuthorizationQueryParametersError, message)
	}
	return refuse(AuthorizationHeaderMalformed, "The authorization header is malformed; "+message)
}

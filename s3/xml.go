package s3

import (
	"encoding/xml"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// This file holds every message body of the protocol, one struct each, in the element order of the S3 API reference.

const xmlHeader = `<?xml version="1.0" encoding="UTF-8"?>` + "\n"

// timeFormat is how S3 writes times in documents; headers use http.TimeFormat.
const timeFormat = "2006-01-02T15:04:05.000Z"

func xmlTime(t time.Time) string { return t.UTC().Format(timeFormat) }

// xmlText is text from a client, such as a key. encoding/xml replaces characters that XML 1.0 cannot hold by U+FFFD, which
// would name another object; xmlText writes them as character references, as AWS does.
type xmlText string

// MarshalXML implements xml.Marshaler.
func (t xmlText) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	if xmlClean(string(t)) {
		return e.EncodeElement(string(t), start)
	}
	return e.EncodeElement(struct {
		S string `xml:",innerxml"`
	}{escapeXML(string(t))}, start)
}

// inXMLRange reports whether XML 1.0 can hold r (section 2.2, Char).
func inXMLRange(r rune) bool {
	return r == '\t' || r == '\n' || r == '\r' || r >= 0x20 && r <= 0xD7FF || r >= 0xE000 && r <= 0xFFFD || r >= 0x10000
}

func xmlClean(s string) bool {
	for _, r := range s {
		if !inXMLRange(r) {
			return false
		}
	}
	return true
}

func escapeXML(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == '&':
			b.WriteString("&amp;")
		case r == '<':
			b.WriteString("&lt;")
		case r == '>':
			b.WriteString("&gt;")
		case r < 0x20 || !inXMLRange(r):
			b.WriteString("&#x" + strings.ToUpper(strconv.FormatInt(int64(r), 16)) + ";")
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

type errorXML struct {
	XMLName  xml.Name `xml:"Error"`
	Code     string
	Message  string
	Resource xmlText `xml:",omitempty"`
	errorDetail
	RequestID string `xml:"RequestId"`
	HostID    string `xml:"HostId"`
}

type ownerXML struct {
	ID          string
	DisplayName string `xml:",omitempty"`
}

type listBucketsXML struct {
	XMLName           xml.Name    `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListAllMyBucketsResult"`
	Owner             ownerXML    // AWS puts it first
	Buckets           []bucketXML `xml:"Buckets>Bucket"`
	ContinuationToken string      `xml:",omitempty"`
	Prefix            xmlText     `xml:",omitempty"`
}

type bucketXML struct {
	Name         string
	CreationDate string
	BucketRegion string `xml:",omitempty"`
}

type locationXML struct {
	XMLName  xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ LocationConstraint"`
	Location string   `xml:",chardata"`
}

type createBucketXML struct {
	XMLName            xml.Name `xml:"CreateBucketConfiguration"`
	LocationConstraint string
	// Location and Bucket ask for a directory bucket, Tags for tags: all refused.
	Location *struct{}
	Bucket   *struct{}
	Tags     *struct{}
}

type prefixXML struct{ Prefix xmlText }

type contentXML struct {
	Key               xmlText
	VersionID         string `xml:"VersionId,omitempty"` // ListObjectVersions only
	IsLatest          *bool  `xml:",omitempty"`          // ListObjectVersions only
	LastModified      string
	ETag              string
	ChecksumAlgorithm string `xml:",omitempty"`
	ChecksumType      string `xml:",omitempty"`
	Size              int64
	Owner             *ownerXML `xml:",omitempty"`
	StorageClass      string
}

type listV1XML struct {
	XMLName        xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name           string
	Prefix         xmlText
	Marker         xmlText
	NextMarker     xmlText `xml:",omitempty"`
	MaxKeys        int
	Delimiter      xmlText `xml:",omitempty"`
	EncodingType   string  `xml:",omitempty"`
	IsTruncated    bool
	Contents       []contentXML
	CommonPrefixes []prefixXML
}

type listV2XML struct {
	XMLName               xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListBucketResult"`
	Name                  string
	Prefix                xmlText
	StartAfter            xmlText `xml:",omitempty"`
	ContinuationToken     string  `xml:",omitempty"`
	NextContinuationToken string  `xml:",omitempty"`
	KeyCount              int
	MaxKeys               int
	Delimiter             xmlText `xml:",omitempty"`
	EncodingType          string  `xml:",omitempty"`
	IsTruncated           bool
	Contents              []contentXML
	CommonPrefixes        []prefixXML
}

type listVersionsXML struct {
	XMLName             xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListVersionsResult"`
	Name                string
	Prefix              xmlText
	KeyMarker           xmlText
	VersionIDMarker     string  `xml:"VersionIdMarker"`
	NextKeyMarker       xmlText `xml:",omitempty"`
	NextVersionIDMarker string  `xml:"NextVersionIdMarker,omitempty"`
	MaxKeys             int
	Delimiter           xmlText `xml:",omitempty"`
	EncodingType        string  `xml:",omitempty"`
	IsTruncated         bool
	Version             []contentXML
	CommonPrefixes      []prefixXML
}

// checksumXML is embedded wherever a document shows or claims a checksum.
type checksumXML struct {
	ChecksumCRC32     string `xml:",omitempty"`
	ChecksumCRC32C    string `xml:",omitempty"`
	ChecksumCRC64NVME string `xml:",omitempty"`
	ChecksumSHA1      string `xml:",omitempty"`
	ChecksumSHA256    string `xml:",omitempty"`
}

type copyObjectXML struct {
	XMLName      xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CopyObjectResult"`
	LastModified string
	ETag         string
	ChecksumType string `xml:",omitempty"`
	checksumXML
}

type copyPartXML struct {
	XMLName      xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CopyPartResult"`
	LastModified string
	ETag         string
	checksumXML
}

type deleteXML struct {
	XMLName xml.Name          `xml:"Delete"`
	Objects []deleteObjectXML `xml:"Object"`
	Quiet   bool
}

type deleteObjectXML struct {
	Key              string
	VersionID        string  `xml:"VersionId"`
	ETag             *string // conditions: one that is there and empty is not absent
	LastModifiedTime *string
	Size             *string
}

type deleteResultXML struct {
	XMLName xml.Name     `xml:"http://s3.amazonaws.com/doc/2006-03-01/ DeleteResult"`
	Deleted []deletedXML `xml:"Deleted"`
	Errors  []failedXML  `xml:"Error"`
}

type deletedXML struct {
	Key       xmlText
	VersionID string `xml:"VersionId,omitempty"`
}

type failedXML struct {
	Key       xmlText
	VersionID string `xml:"VersionId,omitempty"`
	Code      string
	Message   string
}

type createUploadXML struct {
	XMLName  xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ InitiateMultipartUploadResult"`
	Bucket   string
	Key      xmlText
	UploadID string `xml:"UploadId"`
}

type completeUploadXML struct {
	XMLName xml.Name          `xml:"CompleteMultipartUpload"`
	Parts   []completePartXML `xml:"Part"`
}

type completePartXML struct {
	PartNumber int
	ETag       string
	checksumXML
}

type completeResultXML struct {
	XMLName  xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ CompleteMultipartUploadResult"`
	Location string
	Bucket   string
	Key      xmlText
	ETag     string
	checksumXML
	ChecksumType string `xml:",omitempty"`
}

type listPartsXML struct {
	XMLName              xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListPartsResult"`
	Bucket               string
	Key                  xmlText
	UploadID             string `xml:"UploadId"`
	PartNumberMarker     int
	NextPartNumberMarker int
	MaxParts             int
	IsTruncated          bool
	Part                 []partXML
	Initiator            ownerXML
	Owner                ownerXML
	StorageClass         string
	ChecksumAlgorithm    string `xml:",omitempty"`
	ChecksumType         string `xml:",omitempty"`
}

type partXML struct {
	PartNumber   int
	LastModified string
	ETag         string
	Size         int64
	checksumXML
}

type listUploadsXML struct {
	XMLName            xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ ListMultipartUploadsResult"`
	Bucket             string
	KeyMarker          xmlText
	UploadIDMarker     string  `xml:"UploadIdMarker"`
	NextKeyMarker      xmlText `xml:",omitempty"`
	NextUploadIDMarker string  `xml:"NextUploadIdMarker,omitempty"`
	Prefix             xmlText
	Delimiter          xmlText `xml:",omitempty"`
	EncodingType       string  `xml:",omitempty"`
	MaxUploads         int
	IsTruncated        bool
	Upload             []uploadXML
	CommonPrefixes     []prefixXML
}

type uploadXML struct {
	Key               xmlText
	UploadID          string `xml:"UploadId"`
	Initiator         ownerXML
	Owner             ownerXML
	StorageClass      string
	Initiated         string
	ChecksumAlgorithm string `xml:",omitempty"`
	ChecksumType      string `xml:",omitempty"`
}

// encryptionXML is read and written: PutBucketEncryption and GetBucketEncryption.
type encryptionXML struct {
	XMLName xml.Name            `xml:"ServerSideEncryptionConfiguration"`
	Xmlns   string              `xml:"xmlns,attr,omitempty"`
	Rules   []encryptionRuleXML `xml:"Rule"`
}

type encryptionRuleXML struct {
	Apply            *applyEncryptionXML `xml:"ApplyServerSideEncryptionByDefault"`
	BucketKeyEnabled bool
	Blocked          *blockedEncryptionXML `xml:"BlockedEncryptionTypes,omitempty"`
}

type applyEncryptionXML struct {
	SSEAlgorithm   string
	KMSMasterKeyID string `xml:",omitempty"`
}

type blockedEncryptionXML struct {
	EncryptionType []string
}

type aclXML struct {
	XMLName xml.Name   `xml:"http://s3.amazonaws.com/doc/2006-03-01/ AccessControlPolicy"`
	Owner   ownerXML   // the bucket's
	Grants  []grantXML `xml:"AccessControlList>Grant"`
}

type grantXML struct {
	Grantee    granteeXML
	Permission string
}

type granteeXML struct {
	XSI  string `xml:"xmlns:xsi,attr"`
	Type string `xml:"xsi:type,attr"`
	ownerXML
}

type taggingXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ Tagging"`
	Tags    []tagXML `xml:"TagSet>Tag"`
}

type tagXML struct {
	Key   xmlText
	Value xmlText
}

type ownershipXML struct {
	XMLName         xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ OwnershipControls"`
	ObjectOwnership string   `xml:"Rule>ObjectOwnership"`
}

type paymentXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ RequestPaymentConfiguration"`
	Payer   string
}

type versioningXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ VersioningConfiguration"`
}

type loggingXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ BucketLoggingStatus"`
}

type notificationXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ NotificationConfiguration"`
}

type accelerateXML struct {
	XMLName xml.Name `xml:"http://s3.amazonaws.com/doc/2006-03-01/ AccelerateConfiguration"`
}

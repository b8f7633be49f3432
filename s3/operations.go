package s3

import "net/http"

// operation is one call of the S3 API.
type operation struct {
	name   string // as in the API reference; the audit name and metric label
	level  level
	method string
	sub    string
	action string // IAM action on the path's resource
	body   int64  // bound of the request body: a limit in bytes, or bodyStream
	handle handler
}

type handler func(*Server, *call) error

// Bounds of request bodies.
const (
	bodyNone   = 0        // none is read
	bodyStream = -1       // the handler bounds and streams it
	maxConfig  = 64 << 10 // a configuration document
	maxDelete  = 8 << 20  // 1,000 keys of 1,024 bytes, each byte escaped
	maxParts   = 8 << 20  // 10,000 parts with checksums
)

// OpUnknown labels requests that parse could not name.
const OpUnknown = "Unknown"

// operations is the closed set of calls: the table that parse, docs/s3.md and the metrics follow. An operation without a handler
// answers NotImplemented.
func operations() []*operation {
	const get, put, post, del, head = http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodHead
	const svc, bkt, obj = levelService, levelBucket, levelObject
	absent := func(e *apiError) handler { return func(s *Server, c *call) error { return s.absent(c, e) } }
	return []*operation{
		{"ListBuckets", svc, get, "", "s3:ListAllMyBuckets", bodyNone, (*Server).listBuckets},

		{"CreateBucket", bkt, put, "", "s3:CreateBucket", maxConfig, (*Server).createBucket},
		{"HeadBucket", bkt, head, "", "s3:ListBucket", bodyNone, (*Server).headBucket},
		{"DeleteBucket", bkt, del, "", "s3:DeleteBucket", bodyNone, (*Server).deleteBucket},
		{"ListObjects", bkt, get, "", "s3:ListBucket", bodyNone, (*Server).listObjects},
		{"ListObjectsV2", bkt, get, "list-type", "s3:ListBucket", bodyNone, (*Server).listObjectsV2},
		{"ListObjectVersions", bkt, get, "versions", "s3:ListBucketVersions", bodyNone, (*Server).listVersions},
		{"ListMultipartUploads", bkt, get, "uploads", "s3:ListBucketMultipartUploads", bodyNone, (*Server).listUploads},
		{"DeleteObjects", bkt, post, "delete", "", maxDelete, (*Server).deleteObjects}, // authorised key by key
		{"PostObject", bkt, post, "", "s3:PutObject", bodyNone, nil},
		{"GetBucketLocation", bkt, get, "location", "s3:GetBucketLocation", bodyNone, (*Server).getLocation},

		{"GetBucketEncryption", bkt, get, "encryption", "s3:GetEncryptionConfiguration", bodyNone, (*Server).getEncryption},
		{"PutBucketEncryption", bkt, put, "encryption", "s3:PutEncryptionConfiguration", maxConfig, (*Server).putEncryption},
		{"DeleteBucketEncryption", bkt, del, "encryption", "s3:PutEncryptionConfiguration", bodyNone, (*Server).deleteEncryption},

		{"GetBucketVersioning", bkt, get, "versioning", "s3:GetBucketVersioning", bodyNone, document(versioningXML{})},
		{"PutBucketVersioning", bkt, put, "versioning", "s3:PutBucketVersioning", bodyNone, nil},
		{"GetBucketAcl", bkt, get, "acl", "s3:GetBucketAcl", bodyNone, (*Server).getACL},
		{"PutBucketAcl", bkt, put, "acl", "s3:PutBucketAcl", bodyNone, nil},
		{"GetBucketOwnershipControls", bkt, get, "ownershipControls", "s3:GetBucketOwnershipControls", bodyNone, document(ownershipXML{ObjectOwnership: "BucketOwnerEnforced"})},
		{"PutBucketOwnershipControls", bkt, put, "ownershipControls", "s3:PutBucketOwnershipControls", bodyNone, nil},
		{"DeleteBucketOwnershipControls", bkt, del, "ownershipControls", "s3:PutBucketOwnershipControls", bodyNone, nil},
		{"GetBucketPolicy", bkt, get, "policy", "s3:GetBucketPolicy", bodyNone, absent(errNoPolicy)},
		{"PutBucketPolicy", bkt, put, "policy", "s3:PutBucketPolicy", bodyNone, nil},
		{"DeleteBucketPolicy", bkt, del, "policy", "s3:DeleteBucketPolicy", bodyNone, (*Server).deleteAbsent},
		{"GetBucketPolicyStatus", bkt, get, "policyStatus", "s3:GetBucketPolicyStatus", bodyNone, absent(errNoPolicy)},
		{"GetBucketCors", bkt, get, "cors", "s3:GetBucketCORS", bodyNone, absent(errNoCORS)},
		{"PutBucketCors", bkt, put, "cors", "s3:PutBucketCORS", bodyNone, nil},
		{"DeleteBucketCors", bkt, del, "cors", "s3:PutBucketCORS", bodyNone, (*Server).deleteAbsent},
		{"GetBucketLifecycleConfiguration", bkt, get, "lifecycle", "s3:GetLifecycleConfiguration", bodyNone, absent(errNoLifecycle)},
		{"PutBucketLifecycleConfiguration", bkt, put, "lifecycle", "s3:PutLifecycleConfiguration", bodyNone, nil},
		{"DeleteBucketLifecycle", bkt, del, "lifecycle", "s3:PutLifecycleConfiguration", bodyNone, (*Server).deleteAbsent},
		{"GetBucketTagging", bkt, get, "tagging", "s3:GetBucketTagging", bodyNone, absent(errNoTagSet)},
		{"PutBucketTagging", bkt, put, "tagging", "s3:PutBucketTagging", bodyNone, nil},
		{"DeleteBucketTagging", bkt, del, "tagging", "s3:PutBucketTagging", bodyNone, (*Server).deleteAbsent},
		{"GetBucketWebsite", bkt, get, "website", "s3:GetBucketWebsite", bodyNone, absent(errNoWebsite)},
		{"PutBucketWebsite", bkt, put, "website", "s3:PutBucketWebsite", bodyNone, nil},
		{"DeleteBucketWebsite", bkt, del, "website", "s3:DeleteBucketWebsite", bodyNone, (*Server).deleteAbsent},
		{"GetBucketReplication", bkt, get, "replication", "s3:GetReplicationConfiguration", bodyNone, absent(errNoReplication)},
		{"PutBucketReplication", bkt, put, "replication", "s3:PutReplicationConfiguration", bodyNone, nil},
		{"DeleteBucketReplication", bkt, del, "replication", "s3:PutReplicationConfiguration", bodyNone, (*Server).deleteAbsent},
		{"GetPublicAccessBlock", bkt, get, "publicAccessBlock", "s3:GetBucketPublicAccessBlock", bodyNone, absent(errNoPublicAccessBlock)},
		{"PutPublicAccessBlock", bkt, put, "publicAccessBlock", "s3:PutBucketPublicAccessBlock", bodyNone, nil},
		{"DeletePublicAccessBlock", bkt, del, "publicAccessBlock", "s3:PutBucketPublicAccessBlock", bodyNone, (*Server).deleteAbsent},
		{"GetObjectLockConfiguration", bkt, get, "object-lock", "s3:GetBucketObjectLockConfiguration", bodyNone, absent(errNoObjectLock)},
		{"PutObjectLockConfiguration", bkt, put, "object-lock", "s3:PutBucketObjectLockConfiguration", bodyNone, nil},
		{"GetBucketLogging", bkt, get, "logging", "s3:GetBucketLogging", bodyNone, document(loggingXML{})},
		{"PutBucketLogging", bkt, put, "logging", "s3:PutBucketLogging", bodyNone, nil},
		{"GetBucketNotificationConfiguration", bkt, get, "notification", "s3:GetBucketNotification", bodyNone, document(notificationXML{})},
		{"PutBucketNotificationConfiguration", bkt, put, "notification", "s3:PutBucketNotification", bodyNone, nil},
		{"GetBucketRequestPayment", bkt, get, "requestPayment", "s3:GetBucketRequestPayment", bodyNone, document(paymentXML{Payer: "BucketOwner"})},
		{"PutBucketRequestPayment", bkt, put, "requestPayment", "s3:PutBucketRequestPayment", bodyNone, nil},
		{"GetBucketAccelerateConfiguration", bkt, get, "accelerate", "s3:GetAccelerateConfiguration", bodyNone, document(accelerateXML{})},
		{"PutBucketAccelerateConfiguration", bkt, put, "accelerate", "s3:PutAccelerateConfiguration", bodyNone, nil},
		{"GetBucketAnalyticsConfiguration", bkt, get, "analytics", "s3:GetAnalyticsConfiguration", bodyNone, nil},
		{"PutBucketAnalyticsConfiguration", bkt, put, "analytics", "s3:PutAnalyticsConfiguration", bodyNone, nil},
		{"DeleteBucketAnalyticsConfiguration", bkt, del, "analytics", "s3:PutAnalyticsConfiguration", bodyNone, nil},
		{"GetBucketIntelligentTieringConfiguration", bkt, get, "intelligent-tiering", "s3:GetIntelligentTieringConfiguration", bodyNone, nil},
		{"PutBucketIntelligentTieringConfiguration", bkt, put, "intelligent-tiering", "s3:PutIntelligentTieringConfiguration", bodyNone, nil},
		{"DeleteBucketIntelligentTieringConfiguration", bkt, del, "intelligent-tiering", "s3:PutIntelligentTieringConfiguration", bodyNone, nil},
		{"GetBucketInventoryConfiguration", bkt, get, "inventory", "s3:GetInventoryConfiguration", bodyNone, nil},
		{"PutBucketInventoryConfiguration", bkt, put, "inventory", "s3:PutInventoryConfiguration", bodyNone, nil},
		{"DeleteBucketInventoryConfiguration", bkt, del, "inventory", "s3:PutInventoryConfiguration", bodyNone, nil},
		{"GetBucketMetricsConfiguration", bkt, get, "metrics", "s3:GetMetricsConfiguration", bodyNone, nil},
		{"PutBucketMetricsConfiguration", bkt, put, "metrics", "s3:PutMetricsConfiguration", bodyNone, nil},
		{"DeleteBucketMetricsConfiguration", bkt, del, "metrics", "s3:PutMetricsConfiguration", bodyNone, nil},
		{"GetBucketMetadataConfiguration", bkt, get, "metadataConfiguration", "s3:GetBucketMetadataTableConfiguration", bodyNone, nil},
		{"CreateBucketMetadataConfiguration", bkt, post, "metadataConfiguration", "s3:CreateBucketMetadataTableConfiguration", bodyNone, nil},
		{"DeleteBucketMetadataConfiguration", bkt, del, "metadataConfiguration", "s3:DeleteBucketMetadataTableConfiguration", bodyNone, nil},
		{"GetBucketMetadataTableConfiguration", bkt, get, "metadataTable", "s3:GetBucketMetadataTableConfiguration", bodyNone, nil},
		{"CreateBucketMetadataTableConfiguration", bkt, post, "metadataTable", "s3:CreateBucketMetadataTableConfiguration", bodyNone, nil},
		{"DeleteBucketMetadataTableConfiguration", bkt, del, "metadataTable", "s3:DeleteBucketMetadataTableConfiguration", bodyNone, nil},
		{"UpdateBucketMetadataInventoryTableConfiguration", bkt, put, "metadataInventoryTable", "s3:UpdateBucketMetadataInventoryTableConfiguration", bodyNone, nil},
		{"UpdateBucketMetadataJournalTableConfiguration", bkt, put, "metadataJournalTable", "s3:UpdateBucketMetadataJournalTableConfiguration", bodyNone, nil},
		{"GetBucketAbac", bkt, get, "abac", "s3:GetBucketAbac", bodyNone, nil},
		{"PutBucketAbac", bkt, put, "abac", "s3:PutBucketAbac", bodyNone, nil},
		{"CreateSession", bkt, get, "session", "s3express:CreateSession", bodyNone, nil},

		{"PutObject", obj, put, "", "s3:PutObject", bodyStream, (*Server).putObject},
		{"CopyObject", obj, put, selCopy, "s3:PutObject", bodyNone, (*Server).copyObject},
		{"GetObject", obj, get, "", "s3:GetObject", bodyNone, (*Server).getObject},
		{"HeadObject", obj, head, "", "s3:GetObject", bodyNone, (*Server).headObject},
		{"DeleteObject", obj, del, "", "s3:DeleteObject", bodyNone, (*Server).deleteObject},
		{"CreateMultipartUpload", obj, post, "uploads", "s3:PutObject", bodyNone, (*Server).createUpload},
		{"UploadPart", obj, put, "uploadId", "s3:PutObject", bodyStream, (*Server).uploadPart},
		{"UploadPartCopy", obj, put, "uploadId" + selCopy, "s3:PutObject", bodyNone, (*Server).uploadPartCopy},
		{"CompleteMultipartUpload", obj, post, "uploadId", "s3:PutObject", maxParts, (*Server).completeUpload},
		{"AbortMultipartUpload", obj, del, "uploadId", "s3:AbortMultipartUpload", bodyNone, (*Server).abortUpload},
		{"ListParts", obj, get, "uploadId", "s3:ListMultipartUploadParts", bodyNone, (*Server).listParts},

		{"GetObjectAcl", obj, get, "acl", "s3:GetObjectAcl", bodyNone, (*Server).getACL},
		{"PutObjectAcl", obj, put, "acl", "s3:PutObjectAcl", bodyNone, nil},
		{"GetObjectTagging", obj, get, "tagging", "s3:GetObjectTagging", bodyNone, (*Server).getTagging},
		{"PutObjectTagging", obj, put, "tagging", "s3:PutObjectTagging", bodyNone, nil},
		{"DeleteObjectTagging", obj, del, "tagging", "s3:DeleteObjectTagging", bodyNone, nil},
		{"GetObjectLegalHold", obj, get, "legal-hold", "s3:GetObjectLegalHold", bodyNone, absent(errNoLockOnBucket)},
		{"PutObjectLegalHold", obj, put, "legal-hold", "s3:PutObjectLegalHold", bodyNone, nil},
		{"GetObjectRetention", obj, get, "retention", "s3:GetObjectRetention", bodyNone, absent(errNoLockOnBucket)},
		{"PutObjectRetention", obj, put, "retention", "s3:PutObjectRetention", bodyNone, nil},
		{"GetObjectAttributes", obj, get, "attributes", "s3:GetObjectAttributes", bodyNone, nil},
		{"GetObjectTorrent", obj, get, "torrent", "s3:GetObjectTorrent", bodyNone, nil},
		{"RestoreObject", obj, post, "restore", "s3:RestoreObject", bodyNone, nil},
		{"SelectObjectContent", obj, post, "select", "s3:GetObject", bodyNone, nil},
		{"RenameObject", obj, put, "renameObject", "s3express:CreateSession", bodyNone, nil},
		{"UpdateObjectEncryption", obj, put, "encryption", "s3:UpdateObjectEncryption", bodyNone, nil},
	}
}

package s3

import (
	"errors"
	"net/http"
	"strings"

	"coffer/object"
)

func (s *Server) createBucket(c *call) error {
	if !validBucketName(c.bucket) {
		return errInvalidBucketName
	}
	h := c.r.Header
	switch h.Get("X-Amz-Acl") {
	case "", "private":
	default:
		return errBucketACLOwnership
	}
	if err := checkGrants(h); err != nil {
		return err
	}
	if v := h.Get("X-Amz-Object-Ownership"); v != "" && v != "BucketOwnerEnforced" {
		return notImplementedHeader("x-amz-object-ownership")
	}
	if v := h.Get("X-Amz-Bucket-Object-Lock-Enabled"); v != "" && !strings.EqualFold(v, "false") {
		return notImplementedHeader("x-amz-bucket-object-lock-enabled")
	}
	var doc createBucketXML
	if _, err := c.readXML(&doc); err != nil {
		return err
	}
	if doc.Location != nil || doc.Bucket != nil || doc.Tags != nil {
		return errNotImplemented.say("Directory buckets and tags are not implemented.")
	}
	if l := doc.LocationConstraint; l != "" && l != s.opt.Region {
		return errInvalidLocation
	}
	b, err := s.opt.Store.CreateBucket(c.ctx, c.bucket, object.Bucket{Owner: c.who.AccessKey, Region: doc.LocationConstraint})
	if errors.Is(err, object.ErrBucketExists) && b.Owner == c.who.AccessKey {
		// "if you re-create an existing bucket that you already own in us-east-1, Amazon S3 returns 200 OK" (API_CreateBucket)
		if s.opt.Region != DefaultRegion {
			return errBucketOwned.because(err)
		}
		err = nil
	}
	if err != nil {
		return err
	}
	set(c.w.Header(), "Location", "/"+c.bucket)
	return c.empty(http.StatusOK)
}

func (s *Server) headBucket(c *call) error {
	if err := s.requireBucket(c); err != nil {
		return err
	}
	h := c.w.Header()
	set(h, "x-amz-bucket-region", s.opt.Region)
	set(h, "x-amz-access-point-alias", "false")
	set(h, "Content-Type", "application/xml")
	return c.empty(http.StatusOK)
}

func (s *Server) deleteBucket(c *call) error {
	if err := s.opt.Store.DeleteBucket(c.ctx, c.bucket); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

// Bounds of ListBuckets (API_ListBuckets).
const maxBuckets = 10_000

func (s *Server) listBuckets(c *call) error {
	n, err := c.count("max-buckets", maxBuckets, 0)
	if err != nil {
		return err
	}
	if c.query.Has("max-buckets") && n == 0 {
		return invalidArgument("max-buckets", c.query.Get("max-buckets"), "Argument max-buckets must be an integer between 1 and 10000")
	}
	after, err := c.token()
	if err != nil {
		return err
	}
	doc := listBucketsXML{Owner: ownerOf(c.who.AccessKey), Prefix: xmlText(c.query.Get("prefix"))}
	if r := c.query.Get("bucket-region"); r != "" && r != s.opt.Region {
		return c.xml(doc)
	}
	buckets, truncated, err := s.opt.Store.ListBuckets(c.ctx, object.ListBucketsOptions{Prefix: c.query.Get("prefix"), After: after, Max: n})
	if err != nil {
		return err
	}
	for _, b := range buckets {
		doc.Buckets = append(doc.Buckets, bucketXML{Name: b.Name, CreationDate: xmlTime(b.Created), BucketRegion: s.opt.Region})
	}
	if truncated && len(buckets) > 0 {
		doc.ContinuationToken = newToken(buckets[len(buckets)-1].Name)
	}
	return c.xml(doc)
}

func (s *Server) getLocation(c *call) error {
	if err := s.requireBucket(c); err != nil {
		return err
	}
	doc := locationXML{Location: s.opt.Region}
	if s.opt.Region == DefaultRegion {
		doc.Location = "" // API_GetBucketLocation: "Buckets in Region us-east-1 have a LocationConstraint of null"
	}
	return c.xml(doc)
}

func (s *Server) requireBucket(c *call) error {
	_, err := s.opt.Store.Bucket(c.ctx, c.bucket)
	return err
}

// requireObject checks that the object of an object call exists. Its customer key, if it has one, is not needed for that.
func (s *Server) requireObject(c *call) error {
	if err := c.currentVersion(); err != nil {
		return err
	}
	_, err := s.opt.Store.Head(c.ctx, c.bucket, c.key, object.GetOptions{})
	if errors.Is(err, object.ErrKeyRequired) {
		return nil
	}
	return err
}

func (s *Server) requireResource(c *call) error {
	if c.level == levelObject {
		return s.requireObject(c)
	}
	return s.requireBucket(c)
}

// absent answers e for a configuration that no bucket or object has.
func (s *Server) absent(c *call, e *apiError) error {
	if err := s.requireResource(c); err != nil {
		return err
	}
	return e
}

// deleteAbsent deletes a configuration that no bucket has, which succeeds on AWS as well.
func (s *Server) deleteAbsent(c *call) error {
	if err := s.requireBucket(c); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

// document answers the same configuration for every bucket.
func document(doc any) handler {
	return func(s *Server, c *call) error {
		if err := s.requireBucket(c); err != nil {
			return err
		}
		return c.xml(doc)
	}
}

// getACL answers what AWS does for a bucket whose ACLs are disabled: the owner has full control, of the bucket and all in it.
func (s *Server) getACL(c *call) error {
	b, err := s.opt.Store.Bucket(c.ctx, c.bucket)
	if err != nil {
		return err
	}
	if c.level == levelObject {
		if err := s.requireObject(c); err != nil {
			return err
		}
	}
	owner := ownerOf(b.Owner)
	grantee := granteeXML{XSI: "http://www.w3.org/2001/XMLSchema-instance", Type: "CanonicalUser", ownerXML: owner}
	return c.xml(aclXML{Owner: owner, Grants: []grantXML{{Grantee: grantee, Permission: "FULL_CONTROL"}}})
}

func (s *Server) getEncryption(c *call) error {
	b, err := s.opt.Store.Bucket(c.ctx, c.bucket)
	if err != nil {
		return err
	}
	rule := encryptionRuleXML{Apply: &applyEncryptionXML{SSEAlgorithm: sseAES256}}
	switch e := b.Encryption; {
	case e == nil && s.opt.FreshBucketEncryption == FreshNotFound:
		return errNoEncryption
	case e != nil:
		rule.BucketKeyEnabled = e.BucketKey
	}
	return c.xml(encryptionXML{Xmlns: s3Namespace, Rules: []encryptionRuleXML{rule}})
}

func (s *Server) putEncryption(c *call) error {
	var doc encryptionXML
	present, err := c.readXML(&doc)
	if err != nil {
		return err
	}
	if !present {
		return errMissingBody
	}
	if len(doc.Rules) != 1 || doc.Rules[0].Apply == nil {
		return errMalformedXML
	}
	rule := doc.Rules[0]
	switch rule.Apply.SSEAlgorithm {
	case sseAES256:
	case sseKMS, sseDSSE:
		return errNotImplemented.say("Default encryption with a key management service is not implemented.")
	default:
		return errMalformedXML
	}
	if rule.Apply.KMSMasterKeyID != "" {
		return invalidArgument("KMSMasterKeyID", rule.Apply.KMSMasterKeyID, "a KMSMasterKeyID is not applicable if the default sse algorithm is not aws:kms or aws:kms:dsse")
	}
	if rule.Blocked != nil {
		for _, t := range rule.Blocked.EncryptionType {
			if t != "NONE" {
				return errNotImplemented.say("Blocking an encryption type is not implemented.")
			}
		}
	}
	e := &object.BucketEncryption{Mode: object.ModeS3, BucketKey: rule.BucketKeyEnabled}
	if err := s.opt.Store.SetBucketEncryption(c.ctx, c.bucket, e); err != nil {
		return err
	}
	return c.empty(http.StatusOK)
}

func (s *Server) deleteEncryption(c *call) error {
	if err := s.opt.Store.SetBucketEncryption(c.ctx, c.bucket, nil); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

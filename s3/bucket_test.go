package s3

import (
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"coffer/object"
)

func TestBuckets(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/second", nil, "").header("Location", "/second")
	e.ok("PUT", "/third", nil, `<CreateBucketConfiguration><LocationConstraint>us-east-1</LocationConstraint></CreateBucketConfiguration>`)
	golden(t, "list-buckets", e.ok("GET", "/", nil, "").body)
	e.ok("HEAD", "/second", nil, "").header("x-amz-bucket-region", "us-east-1")
	e.refused("HEAD", "/fourth", nil, "", "404")
	golden(t, "location", e.ok("GET", "/second?location", nil, "").body)
	e.ok("DELETE", "/second", nil, "").mustBe("204")
	golden(t, "error-bucket", e.refused("DELETE", "/second", nil, "", "404 NoSuchBucket").body)
	e.ok("PUT", "/bkt/k", nil, "x")
	e.refused("DELETE", "/bkt", nil, "", "409 BucketNotEmpty")

	e.ok("PUT", "/bkt", nil, "") // us-east-1: the owner may create it again
	if a := e.ok("GET", "/bkt/k", nil, ""); a.body != "x" {
		t.Error("creating a bucket again lost its objects")
	}
	other := e.unsigned("PUT", "/bkt", nil, nil)
	sign(other, "OTHERKEY", testSecret, DefaultRegion, time.Now())
	e.send(other).mustBe("409 BucketAlreadyExists")

	for _, tc := range []struct{ path, header, value, body, code string }{
		{"/Upper", "", "", "", "400 InvalidBucketName"},
		{"/a_b_c", "", "", "", "400 InvalidBucketName"},
		{"/fourth", "x-amz-acl", "public-read", "", "400 InvalidBucketAclWithObjectOwnership"},
		{"/fourth", "x-amz-grant-full-control", "id=1", "", "400 AccessControlListNotSupported"},
		{"/fourth", "x-amz-object-ownership", "ObjectWriter", "", "501 NotImplemented"},
		{"/fourth", "x-amz-bucket-object-lock-enabled", "true", "", "501 NotImplemented"},
		{"/fourth", "", "", "<CreateBucketConfiguration><LocationConstraint>mars-1</LocationConstraint></CreateBucketConfiguration>", "400 InvalidLocationConstraint"},
		{"/fourth", "", "", "<CreateBucketConfiguration><Bucket><Type>Directory</Type></Bucket></CreateBucketConfiguration>", "501 NotImplemented"},
		{"/fourth", "", "", "<Nonsense/>", "400 MalformedXML"},
		{"/fourth", "", "", strings.Repeat(" ", maxConfig+1), "400 MaxMessageLengthExceeded"},
	} {
		h := hdr()
		if tc.header != "" {
			h.Set(tc.header, tc.value)
		}
		e.refused("PUT", tc.path, h, tc.body, tc.code)
	}
	e.refused("HEAD", "/fourth", nil, "", "404")
}

func TestOtherRegion(t *testing.T) {
	e := newEnv(t)
	o := Options{Store: e.store, Lookup: e.s.opt.Lookup, Region: "eu-west-1"}
	e.srv.Config.Handler = New(o)
	r := e.unsigned("PUT", "/bkt", nil, nil)
	sign(r, testKey, testSecret, "eu-west-1", time.Now())
	e.send(r).mustBe("409 BucketAlreadyOwnedByYou")
	a := e.do("GET", "/bkt?location", nil, "") // signed for us-east-1
	a.mustBe("400 AuthorizationHeaderMalformed")
	if !strings.Contains(a.body, "<Region>eu-west-1</Region>") {
		t.Errorf("the answer does not name the region: %s", a.body)
	}
	r = e.unsigned("GET", "/bkt?location", nil, nil)
	sign(r, testKey, testSecret, "eu-west-1", time.Now())
	if a := e.send(r); !strings.Contains(a.body, ">eu-west-1</LocationConstraint>") {
		t.Errorf("location: %s", a.body)
	}
}

func TestListBucketsPages(t *testing.T) {
	e := newEnv(t)
	for i := range 5 {
		e.ok("PUT", fmt.Sprintf("/pre-%d", i), nil, "")
	}
	var got []string
	token := ""
	for {
		var doc struct {
			Buckets           []struct{ Name string } `xml:"Buckets>Bucket"`
			ContinuationToken string
		}
		e.ok("GET", "/?prefix=pre&max-buckets=2"+token, nil, "").decode(&doc)
		for _, b := range doc.Buckets {
			got = append(got, b.Name)
		}
		if doc.ContinuationToken == "" {
			break
		}
		token = "&continuation-token=" + url.QueryEscape(doc.ContinuationToken)
	}
	if d := cmp.Diff([]string{"pre-0", "pre-1", "pre-2", "pre-3", "pre-4"}, got); d != "" {
		t.Error(d)
	}
	if a := e.ok("GET", "/?bucket-region=mars-1", nil, ""); strings.Contains(a.body, "<Bucket>") {
		t.Errorf("buckets of another region: %s", a.body)
	}
	e.refused("GET", "/?max-buckets=0", nil, "", "400 InvalidArgument")
	e.refused("GET", "/?max-buckets=x", nil, "", "400 InvalidArgument")
	e.refused("GET", "/?continuation-token=!", nil, "", "400 InvalidArgument")
}

func TestConfigurations(t *testing.T) {
	e := newEnv(t)
	e.ok("PUT", "/bkt/k", nil, "x")
	for _, tc := range []struct{ method, target, want string }{
		{"GET", "/bkt?policy", "404 NoSuchBucketPolicy"},
		{"GET", "/bkt?policyStatus", "404 NoSuchBucketPolicy"},
		{"GET", "/bkt?cors", "404 NoSuchCORSConfiguration"},
		{"GET", "/bkt?lifecycle", "404 NoSuchLifecycleConfiguration"},
		{"GET", "/bkt?tagging", "404 NoSuchTagSet"},
		{"GET", "/bkt?website", "404 NoSuchWebsiteConfiguration"},
		{"GET", "/bkt?replication", "404 ReplicationConfigurationNotFoundError"},
		{"GET", "/bkt?publicAccessBlock", "404 NoSuchPublicAccessBlockConfiguration"},
		{"GET", "/bkt?object-lock", "404 ObjectLockConfigurationNotFoundError"},
		{"GET", "/bkt/k?legal-hold", "400 InvalidRequest"},
		{"GET", "/bkt/k?retention", "400 InvalidRequest"},
		{"GET", "/bkt/none?retention", "404 NoSuchKey"},
		{"DELETE", "/bkt?policy", "204"},
		{"DELETE", "/bkt?cors", "204"},
		{"DELETE", "/bkt?lifecycle", "204"},
		{"DELETE", "/bkt?tagging", "204"},
		{"DELETE", "/bkt?website", "204"},
		{"DELETE", "/bkt?replication", "204"},
		{"DELETE", "/bkt?publicAccessBlock", "204"},
		{"DELETE", "/none?cors", "404 NoSuchBucket"},
		{"GET", "/none?policy", "404 NoSuchBucket"},
		{"GET", "/none?versioning", "404 NoSuchBucket"},
		{"GET", "/none?acl", "404 NoSuchBucket"},
		{"GET", "/bkt/none?acl", "404 NoSuchKey"},
		{"PUT", "/bkt/k?unheard-of", "501 NotImplemented"},
		{"POST", "/bkt/k?select&select-type=2", "501 NotImplemented"},
		{"PATCH", "/bkt/k", "405 MethodNotAllowed"},
	} {
		e.do(tc.method, tc.target, nil, "").mustBe(tc.want)
	}
	for _, op := range operations() {
		if op.handle == nil {
			e.refused(op.method, [...]string{"/?", "/bkt?", "/bkt/k?"}[op.level]+op.sub, nil, "<x/>", "501 NotImplemented")
		}
	}
	if a := e.ok("GET", "/bkt/k", nil, ""); a.body != "x" {
		t.Errorf("a call that is not implemented changed the object to %q", a.body)
	}
	for name, target := range map[string]string{
		"acl-bucket": "/bkt?acl", "acl-object": "/bkt/k?acl", "versioning": "/bkt?versioning", "logging": "/bkt?logging", "notification": "/bkt?notification",
		"payment": "/bkt?requestPayment", "accelerate": "/bkt?accelerate", "ownership": "/bkt?ownershipControls",
	} {
		golden(t, name, e.ok("GET", target, nil, "").body)
	}
	golden(t, "error-policy", e.refused("GET", "/bkt?policy", nil, "", "404 NoSuchBucketPolicy").body)
	golden(t, "error-method", e.refused("PATCH", "/bkt/k", nil, "", "405 MethodNotAllowed").body)
}

const encryptionDoc = `<ServerSideEncryptionConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Rule>%s</Rule></ServerSideEncryptionConfiguration>`

func TestBucketEncryption(t *testing.T) {
	apply := func(algo, rest string) string {
		return fmt.Sprintf(encryptionDoc, "<ApplyServerSideEncryptionByDefault><SSEAlgorithm>"+algo+"</SSEAlgorithm>"+rest+"</ApplyServerSideEncryptionByDefault>")
	}
	e := newEnv(t, func(o *Options) { o.FreshBucketEncryption = FreshNotFound })
	e.refused("GET", "/bkt?encryption", nil, "", "404 ServerSideEncryptionConfigurationNotFoundError")
	e.ok("PUT", "/bkt?encryption", nil, apply("AES256", ""))
	golden(t, "encryption", e.ok("GET", "/bkt?encryption", nil, "").body)
	for body, code := range map[string]string{
		"":                   "400 MissingRequestBodyError",
		apply("ROT13", ""):   "400 MalformedXML",
		apply("aws:kms", ""): "501 NotImplemented",
		apply("AES256", "<KMSMasterKeyID>k</KMSMasterKeyID>"): "400 InvalidArgument",
		fmt.Sprintf(encryptionDoc, ""):                        "400 MalformedXML",
		fmt.Sprintf(encryptionDoc, "<ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault><BlockedEncryptionTypes><EncryptionType>SSE-C</EncryptionType></BlockedEncryptionTypes>"): "501 NotImplemented",
	} {
		e.refused("PUT", "/bkt?encryption", nil, body, code)
	}
	e.refused("PUT", "/none?encryption", nil, apply("AES256", ""), "404 NoSuchBucket")
	e.ok("DELETE", "/bkt?encryption", nil, "").mustBe("204")
	e.refused("GET", "/bkt?encryption", nil, "", "404 ServerSideEncryptionConfigurationNotFoundError")

	aws := newEnv(t)
	golden(t, "encryption", aws.ok("GET", "/bkt?encryption", nil, "").body)
}

func TestListObjects(t *testing.T) {
	e := newEnv(t)
	for _, k := range []string{"a.txt", "dir/one", "dir/two", "sp%20ace%2B/x", "y%20%2A", "z"} {
		e.ok("PUT", "/bkt/"+k, nil, "hello")
	}
	for name, query := range map[string]string{
		"list-v1":           "?",
		"list-v1-delimiter": "?delimiter=/&max-keys=2",
		"list-v1-marker":    "?marker=dir/one&encoding-type=url&delimiter=/&prefix=",
		"list-v2":           "?list-type=2&fetch-owner=true&start-after=dir/two",
		"list-v2-page":      "?list-type=2&max-keys=1&prefix=dir/",
		"list-v2-url":       "?list-type=2&encoding-type=url&delimiter=/",
		"list-v2-none":      "?list-type=2&max-keys=0",
		"list-versions":     "?versions&max-keys=2",
	} {
		golden(t, name, e.ok("GET", "/bkt"+query, nil, "").body)
	}
	for _, q := range []string{"?max-keys=-1", "?max-keys=x", "?max-keys=", "?encoding-type=base64", "?list-type=3", "?list-type=2&continuation-token=", "?list-type=2&continuation-token=zzz", "?versions&version-id-marker=x"} {
		e.refused("GET", "/bkt"+q, nil, "", "400 InvalidArgument")
	}
	if a := e.ok("GET", "/bkt?max-keys=5000", nil, ""); !strings.Contains(a.body, "<MaxKeys>1000</MaxKeys>") {
		t.Errorf("max-keys is not cut: %s", a.body)
	}
	for _, q := range []string{"?", "?list-type=2", "?versions", "?max-keys=0", "?uploads"} {
		e.refused("GET", "/none"+q, nil, "", "404 NoSuchBucket")
	}
}

// TestListPages walks a bucket page by page with every page size and form, and compares what it saw.
func TestListPages(t *testing.T) {
	e := newEnv(t)
	var keys []string
	for i := range 23 {
		k := fmt.Sprintf("%c/%02d", 'a'+i/5, i)
		keys = append(keys, k)
		e.ok("PUT", "/bkt/"+k, nil, "x")
	}
	for _, form := range []string{"v1", "v2", "versions"} {
		for _, delimiter := range []string{"", "/"} {
			for max := 1; max < 25; max += 5 {
				var got []string
				for page := ""; ; {
					var doc struct {
						IsTruncated                                                 bool
						Contents, Version                                           []struct{ Key string }
						CommonPrefixes                                              []struct{ Prefix string }
						NextMarker, NextContinuationToken, NextKeyMarker, KeyMarker string
					}
					q := map[string]string{"v1": "?", "v2": "?list-type=2&", "versions": "?versions&"}[form]
					e.ok("GET", fmt.Sprintf("/bkt%sdelimiter=%s&max-keys=%d%s", q, delimiter, max, page), nil, "").decode(&doc)
					for _, c := range append(doc.Contents, doc.Version...) {
						got = append(got, c.Key)
					}
					for _, p := range doc.CommonPrefixes {
						got = append(got, p.Prefix)
					}
					if !doc.IsTruncated {
						break
					}
					switch form {
					case "v1":
						page = "&marker=" + got[len(got)-1]
						if (doc.NextMarker != "") != (delimiter != "") {
							t.Fatalf("NextMarker %q with delimiter %q", doc.NextMarker, delimiter)
						}
					case "v2":
						page = "&continuation-token=" + url.QueryEscape(doc.NextContinuationToken)
					default:
						page = "&key-marker=" + url.QueryEscape(doc.NextKeyMarker)
					}
				}
				want := keys
				if delimiter != "" {
					want = []string{"a/", "b/", "c/", "d/", "e/"}
				}
				if d := cmp.Diff(want, got); d != "" {
					t.Errorf("%s by %d, delimiter %q: %s", form, max, delimiter, d)
				}
			}
		}
	}
}

func md5Header(body string) []string {
	sum := md5.Sum([]byte(body))
	return []string{"Content-MD5", base64.StdEncoding.EncodeToString(sum[:])}
}

func TestDeleteObjects(t *testing.T) {
	e := newEnv(t)
	for _, k := range []string{"a", "b", "c", "d"} {
		e.ok("PUT", "/bkt/"+k, nil, k)
	}
	body := `<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Object><Key>a</Key></Object><Object><Key>absent</Key></Object><Object><Key>b</Key><VersionId>null</VersionId></Object>` +
		`<Object><Key>c</Key><VersionId>xyz</VersionId></Object><Object><Key></Key></Object><Object><Key>d</Key><ETag>"nope"</ETag></Object></Delete>`
	golden(t, "delete", e.ok("POST", "/bkt?delete", hdr(md5Header(body)...), body).body)
	quiet := `<Delete><Quiet>true</Quiet><Object><Key>c</Key></Object><Object><Key>` + strings.Repeat("k", 1025) + `</Key></Object></Delete>`
	a := e.ok("POST", "/bkt?delete", hdr("x-amz-checksum-crc32", checksumOf("CRC32", quiet), "x-amz-sdk-checksum-algorithm", "CRC32"), quiet)
	if strings.Contains(a.body, "<Deleted>") || !strings.Contains(a.body, "<Code>KeyTooLongError</Code>") {
		t.Errorf("quiet: %s", a.body)
	}
	e.refused("GET", "/bkt/c", nil, "", "404 NoSuchKey")
	e.ok("GET", "/bkt/d", nil, "")

	e.refused("POST", "/bkt?delete", nil, body, "400 InvalidRequest")
	e.refused("POST", "/bkt?delete", hdr(md5Header("other")...), body, "400 BadDigest")
	for _, doc := range []string{"<Delete></Delete>", "<Delete>" + strings.Repeat("<Object><Key>k</Key></Object>", maxDeleteKeys+1) + "</Delete>", "x", "",
		"<Delete><Object><Key>b</Key><Key>d</Key></Object></Delete>", `<Delete><Object><Key>d</Key><Etag>"x"</Etag></Object></Delete>`} {
		e.refused("POST", "/bkt?delete", hdr(md5Header(doc)...), doc, "400 MalformedXML")
	}
	for _, etag := range []string{"", `""`, `"x"`} { // a condition that is not understood is not left out
		doc := "<Delete><Object><Key>d</Key><ETag>" + etag + "</ETag></Object></Delete>"
		if a := e.ok("POST", "/bkt?delete", hdr(md5Header(doc)...), doc); !strings.Contains(a.body, "<Error>") {
			t.Errorf("deletion with ETag %q: %s", etag, a.body)
		}
	}
	e.ok("GET", "/bkt/d", nil, "")
	e.refused("POST", "/none?delete", hdr(md5Header(quiet)...), quiet, "404 NoSuchBucket")
	e.send(e.unsigned("POST", "/bkt?delete", hdr(md5Header(quiet)...), strings.NewReader(quiet))).mustBe("403 AccessDenied")
}

// What a list shows can be deleted, in the form in which the list shows it.
func TestDeleteOddKeys(t *testing.T) {
	e := newEnv(t)
	odd := map[string]string{"a%01b": "a\x01b", "%00": "\x00", "n%EF%BF%BFl": "n\uffffl", "%26%23x1%3B": "&#x1;", "\u00fc%0D": "\u00fc\r"}
	for path := range odd {
		e.ok("PUT", "/bkt/"+path, nil, "x")
	}
	list := e.ok("GET", "/bkt?list-type=2", nil, "").body
	var doc strings.Builder
	doc.WriteString("<Delete>")
	for _, m := range regexp.MustCompile(`<Key>[^<]*</Key>`).FindAllString(list, -1) {
		doc.WriteString("<Object>" + m + "</Object>")
	}
	doc.WriteString("</Delete>")
	a := e.ok("POST", "/bkt?delete", hdr(md5Header(doc.String())...), doc.String())
	if n := len(e.store.buckets["bkt"].objects); n != 0 || strings.Contains(a.body, "<Error>") || strings.Count(a.body, "<Deleted>") != len(odd) {
		t.Errorf("%d left of %s\nasked: %s\nanswer: %s", n, list, doc.String(), a.body)
	}

	// Nothing that could mean another key is guessed at.
	for key, want := range map[string]string{
		"&#1;": "\x01", "&#x0001;": "\x01", "\U00100001": "\U00100001", "&#x100001;": "\U00100001", "&amp;#x1;": "&#x1;",
		"<![CDATA[&#x21;]]>": "&#x21;", "&#xD800;": "", "&#x110000;": "", "&#99999999999;": "",
		"&#x1;\U00100001": "\x01\U00100001", "&#x1;&#1048577;\U00100040": "\x01\U00100001\U00100040", "&#xFFFE;\U0010FFFF": "\uFFFE\U0010FFFF",
		"<![CDATA[x]]>&#x1;": "",
	} {
		var doc deleteXML
		err := decodeDelete([]byte("<Delete><Object><Key>"+key+"</Key></Object></Delete>"), &doc)
		if want == "" {
			if err == nil {
				t.Errorf("%q became %q", key, doc.Objects[0].Key)
			}
		} else if err != nil || doc.Objects[0].Key != want {
			t.Errorf("%q: %+v, %v", key, doc, err)
		}
	}
}

func TestStoreErrors(t *testing.T) {
	e := newEnv(t)
	for _, tc := range []struct {
		err  error
		want string
	}{
		{object.ErrFull, "507 InsufficientStorage"}, {object.ErrReadOnly, "503 ServiceUnavailable"}, {object.ErrClosed, "503 ServiceUnavailable"},
		{object.ErrOverloaded, "503 SlowDown"},
		{object.ErrCorrupt, "500 InternalError"}, {object.ErrConflict, "409 ConditionalRequestConflict"}, {fmt.Errorf("secret internals"), "500 InternalError"},
	} {
		e.store.fail = fmt.Errorf("put: %w", tc.err)
		a := e.refused("PUT", "/bkt/k", nil, "x", tc.want)
		if strings.Contains(a.body, "secret") {
			t.Errorf("internal text leaks: %s", a.body)
		}
	}
}

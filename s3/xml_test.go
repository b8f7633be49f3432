package s3

import (
	"bytes"
	"encoding/xml"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"coffer/object"
)

func TestXMLText(t *testing.T) {
	for in, want := range map[string]string{
		"plain <&> ü":       "plain &lt;&amp;&gt; ü",
		"\x01":              "&#x1;",
		"a\x00<b\x1f":       "a&#x0;&lt;b&#x1F;",
		"\uFFFE":            "&#xFFFE;",
		"tab\tnl\ncr\r":     "tab&#x9;nl&#xA;cr&#xD;",
		"\x01tab\tnl\ncr\r": "&#x1;tab&#x9;nl&#xA;cr&#xD;",
		"\U0001F512":        "\U0001F512",
	} {
		var b bytes.Buffer
		if err := xml.NewEncoder(&b).Encode(struct {
			XMLName xml.Name `xml:"A"`
			K       xmlText
		}{K: xmlText(in)}); err != nil {
			t.Fatal(err)
		}
		if got := b.String(); got != "<A><K>"+want+"</K></A>" {
			t.Errorf("%q: %s", in, got)
		}
	}
}

func TestDecodeXML(t *testing.T) {
	const ns = `xmlns="http://s3.amazonaws.com/doc/2006-03-01/"`
	deep := strings.Repeat("<a>", maxXMLDepth+1) + strings.Repeat("</a>", maxXMLDepth+1)
	for name, tc := range map[string]struct {
		doc string
		ok  bool
	}{
		"plain":              {`<Delete><Object><Key>a</Key></Object></Delete>`, true},
		"declared":           {`<?xml version="1.0" encoding="UTF-8"?><Delete ` + ns + `><Object><Key>a&amp;&#x20;</Key></Object><Quiet>true</Quiet></Delete>` + "\n", true},
		"comment":            {`<!-- c --><Delete></Delete>`, true},
		"empty":              {``, false},
		"text":               {`hello`, false},
		"cut":                {`<Delete><Object>`, false},
		"crossed":            {`<Delete><Object></Delete></Object>`, false},
		"other root":         {`<Remove></Remove>`, false},
		"other namespace":    {`<Delete xmlns="urn:x"></Delete>`, false},
		"doctype":            {`<!DOCTYPE Delete [<!ENTITY a "b">]><Delete><Object><Key>&a;</Key></Object></Delete>`, false},
		"doctype alone":      {`<!DOCTYPE Delete SYSTEM "http://x/"><Delete></Delete>`, false},
		"unknown entity":     {`<Delete><Object><Key>&nbsp;</Key></Object></Delete>`, false},
		"instruction":        {`<?xml-stylesheet href="a"?><Delete></Delete>`, false},
		"two roots":          {`<Delete></Delete><Delete></Delete>`, false},
		"trailing text":      {`<Delete></Delete>x`, false},
		"deep":               {`<Delete>` + deep + `</Delete>`, false},
		"many":               {`<Delete>` + strings.Repeat("<a/>", maxXMLElements) + `</Delete>`, false},
		"control character":  {"<Delete><Object><Key>\x01</Key></Object></Delete>", false},
		"not utf-8":          {"<Delete><Object><Key>\xff</Key></Object></Delete>", false},
		"other encoding":     {`<?xml version="1.0" encoding="ISO-8859-1"?><Delete></Delete>`, false},
		"bad bool":           {`<Delete><Quiet>perhaps</Quiet></Delete>`, false},
		"repeated key":       {`<Delete><Object><Key>a</Key><Key>b</Key></Object></Delete>`, false},
		"repeated, prefixed": {`<Delete xmlns:x="urn:x"><Object><Key>a</Key><x:Key>b</x:Key></Object></Delete>`, false},
		"repeated, apart":    {`<Delete><Quiet>true</Quiet><Object><Key>a</Key></Object><Quiet>false</Quiet></Delete>`, false},
		"repeated object":    {`<Delete><Object><Key>a</Key></Object><Object><Key>a</Key></Object></Delete>`, true},
		"unknown elements":   {`<Delete><Object><Key>a</Key><Future/></Object></Delete>`, false},
		"other case":         {`<Delete><Object><Key>a</Key><Etag>"b"</Etag></Object></Delete>`, false},
		"elements in text":   {`<Delete><Object><Key>a<b/></Key></Object></Delete>`, false},
		"cdata is character": {`<Delete><Object><Key><![CDATA[a<b]]></Key></Object></Delete>`, true},
	} {
		var d deleteXML
		if err := decodeXML([]byte(tc.doc), &d); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		} else if err != nil && codeOf(t, err) != "MalformedXML" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRepeatedElements: no document is accepted that names one thing twice.
func TestRepeatedElements(t *testing.T) {
	for _, tc := range []struct {
		doc any
		xml string
		ok  bool
	}{
		{new(createBucketXML), `<CreateBucketConfiguration><Location><Name>a</Name><Type>b</Type></Location></CreateBucketConfiguration>`, true},
		{new(completeUploadXML), `<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>a</ETag><ChecksumCRC32>b</ChecksumCRC32></Part></CompleteMultipartUpload>`, true},
		{new(encryptionXML), `<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><Future/></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>`, false},
		{new(createBucketXML), `<CreateBucketConfiguration><LocationConstraint>a</LocationConstraint><LocationConstraint>b</LocationConstraint></CreateBucketConfiguration>`, false},
		{new(completeUploadXML), `<CompleteMultipartUpload><Part><PartNumber>1</PartNumber></Part><Part><PartNumber>2</PartNumber></Part></CompleteMultipartUpload>`, true},
		{new(completeUploadXML), `<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><PartNumber>2</PartNumber></Part></CompleteMultipartUpload>`, false},
		{new(completeUploadXML), `<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>a</ETag><ETag>b</ETag></Part></CompleteMultipartUpload>`, false},
		{new(encryptionXML), `<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>aws:kms</SSEAlgorithm><SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>`, false},
		{new(encryptionXML), `<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault/><ApplyServerSideEncryptionByDefault/></Rule></ServerSideEncryptionConfiguration>`, false},
		{new(encryptionXML), `<ServerSideEncryptionConfiguration><Rule><BlockedEncryptionTypes><EncryptionType>SSE-C</EncryptionType><EncryptionType>NONE</EncryptionType></BlockedEncryptionTypes></Rule></ServerSideEncryptionConfiguration>`, true},
	} {
		if err := decodeXML([]byte(tc.xml), tc.doc); (err == nil) != tc.ok {
			t.Errorf("%s: %v", tc.xml, err)
		}
	}
}

func FuzzDecodeXML(f *testing.F) {
	for _, s := range []string{
		`<Delete xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Object><Key>a</Key><VersionId>null</VersionId></Object><Quiet>true</Quiet></Delete>`,
		`<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>"a"</ETag><ChecksumCRC32>AAAAAA==</ChecksumCRC32></Part></CompleteMultipartUpload>`,
		`<CreateBucketConfiguration><LocationConstraint>EU</LocationConstraint></CreateBucketConfiguration>`,
		`<ServerSideEncryptionConfiguration><Rule><ApplyServerSideEncryptionByDefault><SSEAlgorithm>AES256</SSEAlgorithm></ApplyServerSideEncryptionByDefault></Rule></ServerSideEncryptionConfiguration>`,
		`<!DOCTYPE a [<!ENTITY b "c">]><Delete>&b;</Delete>`,
		"<Delete><Object><Key>a&#x1;b&#33;\U00100001</Key></Object></Delete>",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		var (
			d deleteXML
			u completeUploadXML
			b createBucketXML
			e encryptionXML
		)
		if decodeXML(doc, &d) == nil && len(d.Objects) > maxXMLElements {
			t.Fatal("too many objects")
		}
		var plain, odd deleteXML
		if decodeDelete(doc, &odd) == nil && decodeXML(doc, &plain) == nil {
			if diff := cmp.Diff(plain.Objects, odd.Objects); diff != "" {
				t.Fatalf("what encoding/xml reads was read otherwise: %s", diff)
			}
		}
		if decodeXML(doc, &u) == nil {
			if parts, err := u.parts(); err == nil && (len(parts) == 0 || len(parts) > object.MaxParts) {
				t.Fatalf("%d parts", len(parts))
			}
		}
		decodeXML(doc, &b)
		decodeXML(doc, &e)
	})
}

// FuzzXMLText checks that no text makes an invalid or ambiguous document.
func FuzzXMLText(f *testing.F) {
	f.Add("a<b>&\x01\t\r\n\uFFFE")
	f.Fuzz(func(t *testing.T, s string) {
		if strings.ToValidUTF8(s, "") != s {
			t.Skip("keys are valid UTF-8")
		}
		esc := escapeXML(s)
		if strings.ContainsAny(esc, "<>") || strings.ContainsFunc(esc, func(r rune) bool { return !inXMLRange(r) || r < 0x20 }) {
			t.Fatalf("%q became %q", s, esc)
		}
		if xmlClean(s) {
			var back string
			if err := xml.Unmarshal([]byte("<a>"+esc+"</a>"), &back); err != nil || back != s {
				t.Fatalf("%q came back as %q: %v", s, back, err)
			}
		}
	})
}

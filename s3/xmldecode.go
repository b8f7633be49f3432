package s3

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Limits of the XML that a client may send, whatever the message.
const (
	maxXMLDepth    = 8
	maxXMLElements = 100_000 // CompleteMultipartUpload: 10,000 parts of up to 8 elements
)

const s3Namespace = "http://s3.amazonaws.com/doc/2006-03-01/"

var errXML = errors.New("xml refused")

// decodeXML reads one message from body into v. It refuses document types, processing instructions other than the declaration,
// entities beyond the five of XML, other namespaces than S3's, elements too deep or too many, and anything behind the root
// element. The body's size is bounded by the caller.
func decodeXML(body []byte, v any) error {
	if err := checkXML(body); err != nil {
		return errMalformedXML.because(err)
	}
	if err := xml.Unmarshal(body, v); err != nil {
		return errMalformedXML.because(err)
	}
	return nil
}

func checkXML(body []byte) error {
	d := xml.NewDecoder(bytes.NewReader(body))
	depth, elements, roots := 0, 0, 0
	for {
		tok, err := d.RawToken()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("parse xml: %w", err)
		}
		switch t := tok.(type) {
		case xml.StartElement:
			if depth == 0 {
				roots++
			}
			depth++
			elements++
			if depth > maxXMLDepth || elements > maxXMLElements {
				return fmt.Errorf("%w: %d elements, depth %d", errXML, elements, depth)
			}
			for _, a := range t.Attr {
				if a.Name.Local == "xmlns" && a.Name.Space == "" && a.Value != "" && strings.TrimSuffix(a.Value, "/")+"/" != s3Namespace {
					return fmt.Errorf("%w: namespace %.80q", errXML, a.Value)
				}
			}
		case xml.EndElement:
			depth--
		case xml.Directive:
			return fmt.Errorf("%w: directive", errXML)
		case xml.ProcInst:
			if t.Target != "xml" {
				return fmt.Errorf("%w: processing instruction", errXML)
			}
		case xml.CharData:
			if depth == 0 && len(bytes.TrimSpace(t)) != 0 {
				return fmt.Errorf("%w: text outside of the root element", errXML)
			}
		}
	}
	if roots != 1 || depth != 0 {
		return fmt.Errorf("%w: %d root elements", errXML, roots)
	}
	return nil
}

package s3

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits of the XML that a client may send, whatever the message.
const (
	maxXMLDepth    = 8
	maxXMLElements = 100_000 // CompleteMultipartUpload: 10,000 parts of up to 8 elements
)

const s3Namespace = "http://s3.amazonaws.com/doc/2006-03-01/"

// mayRepeat names the elements that an element may hold more than one of. encoding/xml takes the last one of any other.
var mayRepeat = map[string]bool{"Object": true, "Part": true, "Rule": true, "EncryptionType": true, "Tag": true}

var errXML = errors.New("xml refused")

// decodeXML reads one message from body into v. It refuses document types, processing instructions other than the declaration,
// entities beyond the five of XML, other namespaces than S3's, elements too deep, too many or repeated where one is meant, and
// anything behind the root element. The body's size is bounded by the caller.
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
	var seen [maxXMLDepth + 1]map[string]bool // by depth, in the element that is open there
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
			seen[depth] = nil
			if name := t.Name.Local; !mayRepeat[name] { // whatever its prefix: encoding/xml does not look at it
				if seen[depth-1][name] {
					return fmt.Errorf("%w: %.80q is repeated", errXML, name)
				}
				if seen[depth-1] == nil {
					seen[depth-1] = make(map[string]bool)
				}
				seen[depth-1][name] = true
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

// stowed is where characters that XML 1.0 lacks travel through encoding/xml, which refuses them even as references: in a private
// plane.
const stowed = 0x100000

var charRef = regexp.MustCompile(`&#(?:[0-9]+|x[0-9a-fA-F]+);`)

// decodeDelete reads the document of DeleteObjects, whose keys may have any character that keys in lists have: also those that lists
// show as references which XML 1.0 does not allow (see xmlText).
func decodeDelete(body []byte, doc *deleteXML) error {
	body, restore, err := stow(body)
	if err != nil {
		return errMalformedXML.because(err)
	}
	if err := decodeXML(body, doc); err != nil || !restore {
		return err
	}
	for i := range doc.Objects {
		doc.Objects[i].Key = strings.Map(func(r rune) rune {
			if r >= stowed {
				return r - stowed
			}
			return r
		}, doc.Objects[i].Key)
	}
	return nil
}

// stow moves references to characters that XML 1.0 lacks to the private plane, and reports whether there were any. A document that
// uses that plane itself, or in which what looks like a reference may be text, stays as it is.
func stow(body []byte) (out []byte, changed bool, err error) {
	const planeLead = 0xF4 // first byte of the plane in UTF-8, and of nothing else
	taken := bytes.IndexByte(body, planeLead) >= 0 || bytes.Contains(body, []byte("<![CDATA["))
	out = charRef.ReplaceAllFunc(body, func(ref []byte) []byte {
		digits, base := string(ref[2:len(ref)-1]), 10
		if digits[0] == 'x' {
			digits, base = digits[1:], 16
		}
		n, e := strconv.ParseUint(digits, base, 32)
		r := rune(min(n, utf8.MaxRune+1))
		switch {
		case e != nil || !utf8.ValidRune(r): // encoding/xml would take a surrogate for U+FFFD
			err = fmt.Errorf("%w: reference %.20q", errXML, ref)
		case r >= stowed:
			taken = true
		case !inXMLRange(r):
			changed = true
			return fmt.Appendf(nil, "&#%d;", stowed+r)
		}
		return ref
	})
	if taken || !changed {
		return body, false, err
	}
	return out, true, err
}

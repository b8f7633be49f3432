package s3

import (
	"bytes"
	"cmp"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
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
// entities beyond the five of XML, other namespaces than S3's, elements that v has no place for (one that is ignored might be a
// condition), too deep, too many or repeated where one is meant, and anything behind the root element. The body's size is bounded by
// the caller.
func decodeXML(body []byte, v any) error {
	if err := checkXML(body, shapeOf(reflect.TypeOf(v))); err != nil {
		return errMalformedXML.because(err)
	}
	if err := xml.Unmarshal(body, v); err != nil {
		return errMalformedXML.because(err)
	}
	return nil
}

// shape is the elements that an element may hold, with theirs; nil: any.
type shape map[string]shape

// shapeOf is what encoding/xml takes for a value of type t.
func shapeOf(t reflect.Type) shape {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	s := shape{}
	if t.Kind() != reflect.Struct {
		return s
	}
	if t.NumField() == 0 {
		return nil
	}
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous {
			maps.Copy(s, shapeOf(f.Type))
			continue
		}
		if name, _, _ := strings.Cut(f.Tag.Get("xml"), ","); f.Name != "XMLName" {
			s[cmp.Or(name, f.Name)] = shapeOf(f.Type)
		}
	}
	return s
}

func checkXML(body []byte, root shape) error {
	d := xml.NewDecoder(bytes.NewReader(body))
	depth, elements, roots := 0, 0, 0
	var seen [maxXMLDepth + 1]map[string]bool // by depth, in the element that is open there
	var open [maxXMLDepth + 1]shape
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
			name := t.Name.Local
			if inner, ok := open[depth-1][name]; depth == 1 { // whose name Unmarshal looks at
				open[depth] = root
			} else if open[depth] = inner; !ok && open[depth-1] != nil {
				return fmt.Errorf("%w: unknown element %.80q", errXML, name)
			}
			seen[depth] = nil
			if !mayRepeat[name] { // whatever its prefix: encoding/xml does not look at it
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

// Characters that XML 1.0 lacks travel through encoding/xml, which refuses them even as references, as those of a block of the last
// private plane that the document does not use.
const (
	stowPlane = 0x100000
	stowBlock = 64 // of which 34 are needed: below U+0020, and two at the end of the first plane
)

var charRef = regexp.MustCompile(`&#(?:[0-9]+|x[0-9a-fA-F]+);`)

// decodeDelete reads the document of DeleteObjects, whose keys may have any character that keys in lists have: also those that lists
// show as references which XML 1.0 does not allow (see xmlText).
func decodeDelete(body []byte, doc *deleteXML) error {
	body, base, err := stow(body)
	if err != nil {
		return errMalformedXML.because(err)
	}
	if err := decodeXML(body, doc); err != nil || base == 0 {
		return err
	}
	for i := range doc.Objects {
		doc.Objects[i].Key = strings.Map(func(r rune) rune {
			switch i := r - base; {
			case i < 0 || i >= stowBlock:
				return r
			case i < 0x20:
				return i
			default:
				return i - 0x20 + 0xFFFE
			}
		}, doc.Objects[i].Key)
	}
	return nil
}

// stow moves references to characters that XML 1.0 lacks to a block of the private plane, and returns where it begins, 0 if there were
// none. A document in which what looks like a reference may be text stays as it is.
func stow(body []byte) (out []byte, base rune, err error) {
	used, lacking := make(map[rune]bool), false // blocks
	for _, ref := range charRef.FindAll(body, -1) {
		switch r, ok := refRune(ref); {
		case !ok: // encoding/xml would take a surrogate for U+FFFD
			return nil, 0, fmt.Errorf("%w: reference %.20q", errXML, ref)
		case r >= stowPlane:
			used[r/stowBlock] = true
		case !inXMLRange(r):
			lacking = true
		}
	}
	if !lacking || bytes.Contains(body, []byte("<![CDATA[")) {
		return body, 0, nil
	}
	for _, r := range string(body) {
		if r >= stowPlane {
			used[r/stowBlock] = true
		}
	}
	for base = stowPlane; used[base/stowBlock]; base += stowBlock { // 1,024 of them, of which 1,000 keys of 1,024 bytes may use all
		if base+stowBlock > utf8.MaxRune {
			return nil, 0, fmt.Errorf("%w: too many characters of the last plane", errXML)
		}
	}
	return charRef.ReplaceAllFunc(body, func(ref []byte) []byte {
		r, _ := refRune(ref)
		if inXMLRange(r) {
			return ref
		}
		if r >= 0xFFFE {
			r += 0x20 - 0xFFFE
		}
		return fmt.Appendf(nil, "&#%d;", base+r)
	}), base, nil
}

// refRune is the character that a reference names.
func refRune(ref []byte) (rune, bool) {
	digits, base := string(ref[2:len(ref)-1]), 10
	if digits[0] == 'x' {
		digits, base = digits[1:], 16
	}
	n, err := strconv.ParseUint(digits, base, 32)
	r := rune(min(n, utf8.MaxRune+1))
	return r, err == nil && utf8.ValidRune(r)
}

package object

import (
	"encoding/hex"
	"fmt"
	"time"

	"coffer/disk"
)

// RecordInfo is what a record of the log says, for people who look at disks. It has no secret in it: no wrapped key, no digest of a
// customer key, no value of a system record; and without names none of what is derived from content: no name, key, attribute or
// digest. Text that is left out stands as its length.
type RecordInfo struct {
	Kind     int           `json:"kind"`
	KindName string        `json:"kind_name"`
	Bucket   string        `json:"bucket,omitempty"` // id, hex
	Name     string        `json:"name,omitempty"`   // of a bucket, a key or a system record
	Version  string        `json:"version,omitempty"`
	Time     time.Time     `json:"time,omitzero"`
	Size     int64         `json:"size,omitempty"`
	ETag     string        `json:"etag,omitempty"`
	Part     int           `json:"part,omitempty"`
	Parts    int           `json:"parts,omitempty"`
	SSE      string        `json:"sse,omitempty"`
	KeyEpoch uint32        `json:"key_epoch,omitempty"` // of the bucket key that wraps
	Stripes  []disk.Stripe `json:"stripes,omitempty"`
	Fault    string        `json:"fault,omitempty"` // why the rest is missing
}

var kindNames = map[kind]string{kindBucket: "bucket", kindBucketDelete: "bucket delete", kindObject: "object", kindTombstone: "tombstone",
	kindUpload: "upload", kindAbort: "abort", kindPart: "part", kindComplete: "complete", kindConfig: "config"}

var modeNames = map[Mode]string{ModeS3: "SSE-S3", ModeCustomer: "SSE-C", ModeKMS: "SSE-KMS", ModeDSSE: "DSSE-KMS"}

// InspectRecord decodes the body of a record. A body that it cannot decode is described as far as that goes.
func InspectRecord(body []byte, names bool) RecordInfo {
	if len(body) < 2 {
		return RecordInfo{Fault: "shorter than its kind"}
	}
	r := RecordInfo{Kind: int(body[1]), KindName: kindNames[kind(body[1])]}
	if r.KindName == "" {
		r.KindName, r.Fault = "unknown", "of a kind that this program does not describe"
		return r
	}
	if err := r.decode(body); err != nil {
		return RecordInfo{Kind: r.Kind, KindName: r.KindName, Fault: err.Error()}
	}
	if !names {
		r.Name, r.ETag = fmt.Sprintf("(%d bytes)", len(r.Name)), ""
	}
	return r
}

func (r *RecordInfo) decode(body []byte) error {
	switch kind(r.Kind) {
	case kindBucket:
		b, err := decodeBucket(body)
		if err != nil {
			return err
		}
		r.Bucket, r.Name, r.Time = bucketHex(b.id), b.name, fromMillis(b.created)
	case kindBucketDelete:
		b, err := decodeBucketDelete(body)
		if err != nil {
			return err
		}
		r.Bucket, r.Name, r.Time = bucketHex(b.id), b.name, fromMillis(b.at)
	case kindObject, kindComplete:
		o, err := decodeObject(body, depthAll)
		if err != nil {
			return err
		}
		r.object(o)
	case kindTombstone, kindAbort:
		k, err := decodeKey(body)
		if err != nil {
			return err
		}
		r.Bucket, r.Name, r.Version, r.Time = bucketHex(k.bucket), k.key, hex.EncodeToString(k.version[:]), fromMillis(k.at)
	case kindUpload:
		u, err := decodeUpload(body)
		if err != nil {
			return err
		}
		r.Bucket, r.Name, r.Version, r.Time = bucketHex(u.bucket), u.key, hex.EncodeToString(u.id[:]), fromMillis(u.at)
		r.SSE, r.KeyEpoch = modeNames[u.sse.mode], u.sse.epoch
	case kindPart:
		p, err := decodeUploadPart(body)
		if err != nil {
			return err
		}
		r.Bucket, r.Name, r.Version, r.Time = bucketHex(p.bucket), p.key, hex.EncodeToString(p.upload[:]), fromMillis(p.part.modified)
		r.Part, r.Size, r.Stripes, r.ETag = p.part.number, p.part.size, p.part.stripes, p.part.etag.String()
	case kindConfig:
		c, err := decodeConfig(body)
		if err != nil {
			return err
		}
		r.Name, r.Size = c.name, int64(len(c.value))
	}
	return nil
}

func (r *RecordInfo) object(o *objectRecord) {
	r.Bucket, r.Name, r.Version, r.Time = bucketHex(o.bucket), o.key, hex.EncodeToString(o.version[:]), fromMillis(o.modified)
	r.Size, r.ETag, r.SSE, r.KeyEpoch = o.size, o.etag.String(), modeNames[o.sse.mode], o.sse.epoch
	r.Parts, r.Stripes = len(o.content.parts), o.content.single.stripes
	for _, p := range o.content.parts {
		r.Stripes = append(r.Stripes, p.stripes...)
	}
	if m := o.content.manifest; m != nil {
		r.Parts, r.Stripes = int(o.etag.parts), m.stripes
	}
}

func bucketHex(id uint64) string { return fmt.Sprintf("%016x", id) }

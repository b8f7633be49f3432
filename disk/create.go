package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"coffer/disk/internal/blockdev"
)

// CreateOptions describe a new array.
type CreateOptions struct {
	ArrayID  [16]byte
	Paths    []string // in slot order; regular files must exist with their size (see CreateFile)
	Geometry Geometry // zero fields are chosen
	Keys     Keys
	// Force overwrites disks that hold something.
	Force bool

	devices []blockdev.Device
	group   func([]blockdev.Device) (blockdev.Group, error)
	rand    func([]byte)
}

// CreateFile makes a file that can serve as a disk: preallocated, readable by its owner alone.
func CreateFile(path string, size int64) error { return blockdev.CreateFile(path, size) }

// Plan fills in the geometry for disks of the given sizes in bytes and checks it.
func Plan(g Geometry, sizes []int64) (Geometry, error) {
	if len(sizes) == 0 {
		return g, errors.New("no disks")
	}
	smallest := sizes[0]
	for _, s := range sizes {
		smallest = min(smallest, s)
	}
	if g.Data == 0 {
		d, p, err := ChooseGeometry(len(sizes))
		if err != nil {
			return g, err
		}
		if g.Parity == 0 {
			g.Parity = p
		}
		if g.Data = d; g.width() > len(sizes) {
			g.Data = len(sizes) - g.Parity
		}
	}
	if g.ExtentSize == 0 {
		g.ExtentSize = ChooseExtentSize(smallest, g.Data)
	}
	if err := g.Validate(len(sizes)); err != nil {
		return g, err
	}
	if n := g.extents(smallest); n < minExtents {
		return g, fmt.Errorf("disk of %d bytes: room for %d extents of %d, want at least %d", smallest, n, g.ExtentSize, minExtents)
	}
	return g, nil
}

// minExtents is how many extents the smallest disk needs: the bands open at once, the reserve, and one.
const minExtents = reserveBands + 5

// Create writes the superblocks of a new array: epoch 1, all disks active, no bands.
func Create(ctx context.Context, opt CreateOptions) error {
	devs := opt.devices
	if devs == nil {
		var err error
		if devs, err = openAll(opt.Paths, opt.Force); err != nil {
			return err
		}
	}
	sizes := make([]int64, len(devs))
	for i, d := range devs {
		sizes[i] = d.Limits().Size
	}
	closeAll := func() (err error) {
		for _, d := range devs {
			err = errors.Join(err, d.Close())
		}
		return err
	}
	geo, err := Plan(opt.Geometry, sizes)
	if err != nil {
		return errors.Join(err, closeAll())
	}
	head := &superblock{array: opt.ArrayID, geo: geo, created: time.Now().UnixMilli(), keyArea: opt.Keys.Area()}
	disks := make([]*disk, len(devs))
	o := Options{Keys: opt.Keys, group: opt.group, rand: opt.rand}
	a := &Array{opt: o}
	for i, d := range devs {
		m := memberEntry{state: memberActive, extents: geo.extents(sizes[i]), since: 1}
		a.random(m.id[:])
		head.members = append(head.members, m)
		disks[i] = &disk{slot: i, id: m.id, dev: d, gi: i, path: d.Path(), state: DiskHealthy, extents: m.extents}
	}
	first := epoch{num: 1}
	a.random(first.id[:])
	head.history = []epoch{first}
	if a, err = newArray(o, devs, head, disks); err != nil {
		return errors.Join(err, closeAll())
	}
	failed, err := a.writeSuper(head)
	if err == nil && len(failed) > 0 {
		err = fmt.Errorf("superblock not taken by %s", failed[0].path)
	}
	a.cancel()
	return errors.Join(err, a.closeDevices())
}

// openAll opens the disks of an array to be, refusing those that hold something.
func openAll(paths []string, force bool) ([]blockdev.Device, error) {
	var devs []blockdev.Device
	fail := func(err error) ([]blockdev.Device, error) {
		for _, d := range devs {
			d.Close()
		}
		return nil, err
	}
	for _, p := range paths {
		d, err := blockdev.OpenFile(p, blockdev.OpenOptions{})
		if err != nil {
			return fail(fmt.Errorf("open disk: %w", err))
		}
		devs = append(devs, d)
		what, err := contents(d)
		if err != nil {
			return fail(err)
		}
		if what != "" && !force {
			return fail(fmt.Errorf("%s holds %s: %w", p, what, ErrInUse))
		}
	}
	return devs, nil
}

// ErrInUse: a disk that is to become part of an array already holds something.
var ErrInUse = errors.New("disk in use")

// Inspect says what a disk holds, "" for nothing known.
func Inspect(path string) (string, error) {
	d, err := blockdev.OpenFile(path, blockdev.OpenOptions{ReadOnly: true})
	if err != nil {
		return "", err
	}
	defer d.Close()
	return contents(d)
}

// signature is a magic number at a fixed place (util-linux libblkid knows many more).
type signature struct {
	name  string
	off   int
	magic string
}

var signatures = []signature{
	{"an ext2/3/4 filesystem", 0x438, "\x53\xef"},
	{"an XFS filesystem", 0, "XFSB"},
	{"a Btrfs filesystem", 0x10040, "_BHRfS_M"},
	{"an encrypted volume (LUKS)", 0, "LUKS\xba\xbe"},
	{"an LVM volume", 512, "LABELONE"},
	{"a partition table (GPT)", 512, "EFI PART"},
	{"a partition table (GPT)", 4096, "EFI PART"}, // where sectors have 4 KiB
	{"a RAID member (md)", 0, mdMagic},            // 1.1
	{"a RAID member (md)", 4096, mdMagic},
	{"an F2FS filesystem", 1024, "\x10\x20\xf5\xf2"},
	{"an exFAT filesystem", 3, "EXFAT   "},
	{"a Ceph OSD", 0, "bluestore block device"},
	{"a ZFS pool", 132 << 10, "\x0c\xb1\xba\x00"},
	{"swap space", 4086, "SWAPSPACE2"},
	{"an NTFS filesystem", 3, "NTFS    "},
	{"a FAT filesystem", 82, "FAT32   "},
	{"a partition table or boot sector (MBR)", 510, "\x55\xaa"},
}

const mdMagic = "\xfc\x4e\x2b\xa9"

// endSignatures may begin any block of the last endArea bytes: md 0.90 lies at the last whole 64 KiB, 1.0 at 8 KiB before the end, and the
// copy of a GPT is the last sector.
var endSignatures = []signature{
	{"a RAID member (md)", 0, mdMagic},
	{"a partition table (GPT)", BlockSize - 512, "EFI PART"},
	{"a partition table (GPT)", 0, "EFI PART"}, // where sectors have 4 KiB
}

const endArea = 128 << 10

// contents recognises an array's member and common filesystems.
func contents(d blockdev.Device) (string, error) {
	if d.Limits().Size < superArea {
		return "", fmt.Errorf("inspect %s: %d bytes is too small for a disk", d.Path(), d.Limits().Size)
	}
	raws, errs, err := readNew([]blockdev.Device{d}, 0)
	if err != nil || errs[0] != nil {
		return "", fmt.Errorf("inspect %s: %w", d.Path(), errors.Join(err, errs[0]))
	}
	arena := newArena(1 << 20)
	defer arena.Close()
	for i, b := range raws[0] {
		if sb, err := decodeSuperblock(b, i); err == nil {
			return fmt.Sprintf("a member of array %x", sb.array), nil
		}
	}
	buf, err := arena.Get(context.Background(), 256<<10)
	if err != nil {
		return "", err
	}
	defer buf.Release()
	b := buf.Bytes()[:256<<10]
	if err := d.ReadAt(b, 0); err != nil {
		return "", fmt.Errorf("inspect %s: %w", d.Path(), err)
	}
	for _, s := range signatures {
		if bytes.HasPrefix(b[s.off:], []byte(s.magic)) {
			return s.name, nil
		}
	}
	b = b[:endArea]
	if err := d.ReadAt(b, d.Limits().Size&^(BlockSize-1)-endArea); err != nil {
		return "", fmt.Errorf("inspect %s: %w", d.Path(), err)
	}
	for off := 0; off < endArea; off += BlockSize {
		for _, s := range endSignatures {
			if bytes.HasPrefix(b[off+s.off:], []byte(s.magic)) {
				return s.name, nil
			}
		}
	}
	return "", nil
}

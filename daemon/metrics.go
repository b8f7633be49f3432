package main

import (
	"hash"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"coffer/disk"
	"coffer/hw"
	"coffer/object"
	"coffer/s3"
)

// latencyBuckets reach from a cached read to a stalled multipart completion, in seconds.
func latencyBuckets() []float64 {
	return []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
}

// newRegistry returns a registry with the Go runtime's and the process's metrics.
func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "coffer_build_info", Help: "1, labelled with the version.", ConstLabels: prometheus.Labels{"version": version},
		}, func() float64 { return 1 }),
	)
	return r
}

// s3Metrics count requests. Operations and codes are closed sets; buckets and keys are no labels.
type s3Metrics struct {
	requests  *prometheus.CounterVec
	received  *prometheus.CounterVec
	sent      *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	firstByte *prometheus.HistogramVec
	inFlight  prometheus.Gauge
}

func newS3Metrics(r prometheus.Registerer) *s3Metrics {
	m := &s3Metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coffer_s3_requests_total", Help: "S3 requests by operation and error code; OK for none."}, []string{"op", "code"}),
		received: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coffer_s3_received_bytes_total", Help: "Bytes of request bodies."}, []string{"op"}),
		sent: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "coffer_s3_sent_bytes_total", Help: "Bytes of response bodies."}, []string{"op"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "coffer_s3_request_duration_seconds", Help: "Time from the request's header to the end of the answer.",
			Buckets: latencyBuckets()}, []string{"op"}),
		firstByte: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "coffer_s3_first_byte_seconds", Help: "Time from the request's header to the answer's.",
			Buckets: latencyBuckets()}, []string{"op"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "coffer_s3_requests_in_flight", Help: "S3 requests being worked on."}),
	}
	r.MustRegister(m.requests, m.received, m.sent, m.duration, m.firstByte, m.inFlight)
	return m
}

// observe is s3.Options.Observe.
func (m *s3Metrics) observe(o *s3.Observation) {
	m.requests.WithLabelValues(o.Op, o.Code).Inc()
	m.received.WithLabelValues(o.Op).Add(float64(o.BytesIn))
	m.sent.WithLabelValues(o.Op).Add(float64(o.BytesOut))
	m.duration.WithLabelValues(o.Op).Observe(o.Duration.Seconds())
	m.firstByte.WithLabelValues(o.Op).Observe(o.FirstByte.Seconds())
}

// count wraps h to know how many requests are in flight.
func (m *s3Metrics) count(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.inFlight.Inc()
		defer m.inFlight.Dec()
		h.ServeHTTP(w, r)
	})
}

// meteredSHA256 makes the hashes with which s3 verifies bodies: of the chosen path, and counted like what the store computes.
func meteredSHA256(e *hw.Engine) func() hash.Hash {
	m := e.Meter(hw.SHA256, hw.Sum)
	return func() hash.Hash { return meteredHash{e.NewHash(hw.SHA256), m} }
}

type meteredHash struct {
	hash.Hash
	meter *hw.Meter
}

func (h meteredHash) Write(p []byte) (int, error) {
	start := time.Now()
	n, err := h.Hash.Write(p)
	h.meter.Add(n, time.Since(start))
	return n, err
}

// collector makes metrics from a snapshot that is taken at each scrape.
type collector func(ch chan<- prometheus.Metric)

// Describe implements prometheus.Collector. It tells nothing beforehand: what there is to collect changes as the array opens.
func (c collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) { c(ch) }

// sample describes a metric whose value is taken from a T.
type sample[T any] struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	get  func(T) float64
}

func gauge[T any](name, help string, get func(T) float64, labels ...string) sample[T] {
	return sample[T]{prometheus.NewDesc("coffer_"+name, help, labels, nil), prometheus.GaugeValue, get}
}

func counter[T any](name, help string, get func(T) float64, labels ...string) sample[T] {
	return sample[T]{prometheus.NewDesc("coffer_"+name, help, labels, nil), prometheus.CounterValue, get}
}

func (s sample[T]) send(ch chan<- prometheus.Metric, from T, labels ...string) {
	ch <- prometheus.MustNewConstMetric(s.desc, s.kind, s.get(from), labels...)
}

// registerHardware exports what each code path did, and what it measured at boot.
func registerHardware(r prometheus.Registerer, e *hw.Engine) {
	value := func(v float64) float64 { return v }
	labels := []string{"primitive", "path", "op"}
	bytes := counter("crypto_bytes_total", "Bytes worked on by each code path.", value, labels...)
	seconds := counter("crypto_seconds_total", "Time spent in each code path, over all cores.", value, labels...)
	bench := gauge("crypto_bench_bytes_per_second", "Speed of each code path in the boot benchmark, by message size in bytes.", value,
		"primitive", "path", "size")
	chosen := gauge("crypto_path_chosen", "1 for the code path in use.", value, "primitive", "path")
	pass := gauge("crypto_path_self_test_passed", "1 for a code path that passed its known-answer tests, 0 for one that did not run or failed.",
		value, "primitive", "path")
	report := e.Report()
	r.MustRegister(collector(func(ch chan<- prometheus.Metric) {
		e.Totals(func(p hw.Primitive, path string, op hw.Op, b uint64, s float64) {
			bytes.send(ch, float64(b), string(p), path, op.String())
			seconds.send(ch, s, string(p), path, op.String())
		})
		for _, p := range report.Paths {
			for size, gbps := range p.GBps {
				bench.send(ch, gbps*1e9, string(p.Primitive), p.Path, size)
			}
			chosen.send(ch, oneIf(p.Chosen), string(p.Primitive), p.Path)
			pass.send(ch, oneIf(p.SelfTest == "pass"), string(p.Primitive), p.Path)
		}
	}))
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// These are the closed sets of label values.
var (
	compactionStates = [...]string{"idle", "running", "paused"}

	arrayStates = [...]string{"healthy", "degraded", "read-only", "stopped"}
	diskStates  = [...]disk.DiskState{disk.DiskHealthy, disk.DiskSuspect, disk.DiskRebuilding, disk.DiskFenced, disk.DiskMissing,
		disk.DiskStale, disk.DiskForeign, disk.DiskDraining, disk.DiskSpare, disk.DiskRetired}
)

// registerArray exports the state of the array, its disks, its keys and its store while one is open.
func registerArray(r prometheus.Registerer, open func() *appliance) {
	index := gauge("index_healthy", "1 while the index works, 0 while it has failed, is being rebuilt or is not open yet.",
		func(a *appliance) float64 { return oneIf(a != nil && a.store.Healthy() == nil) })
	state := gauge("array_state", "1 for the state that the array is in.", func(v float64) float64 { return v }, "state")
	status := []sample[*disk.Status]{
		gauge("array_epoch", "Epoch of the array's membership.", func(s *disk.Status) float64 { return float64(s.Epoch) }),
		gauge("array_capacity_bytes", "Room for data when all disks are there.", func(s *disk.Status) float64 { return float64(s.Capacity) }),
		gauge("array_thin_bands", "Bands with less parity than the array has, as they were written when too few disks were there.",
			func(s *disk.Status) float64 { return float64(s.Thin) }),
		gauge("array_free_bytes", "Room for data in extents not yet taken.", func(s *disk.Status) float64 { return float64(s.Free) }),
		gauge("array_bands", "Bands in the log.", func(s *disk.Status) float64 { return float64(s.Bands) }),
		gauge("array_losses", "Runs of acknowledged stripes that cannot be read.", func(s *disk.Status) float64 { return float64(len(s.Losses)) }),
		gauge("array_buffer_bytes", "I/O buffers in use.", func(s *disk.Status) float64 { return float64(s.BufferBytes) }),
		counter("commits_total", "Group commits: packed stripes made durable.", func(s *disk.Status) float64 { return float64(s.Commits) }),
		counter("commit_records_total", "Records in group commits.", func(s *disk.Status) float64 { return float64(s.Records) }),
		counter("commit_bytes_total", "Bytes written by group commits, parity and headers included.", func(s *disk.Status) float64 { return float64(s.Committed) }),
		counter("repaired_cells_total", "Cells rewritten because they were bad or missing.", func(s *disk.Status) float64 { return float64(s.Repairs) }),
		counter("hedged_reads_total", "Reads that were late, so that other disks were asked.", func(s *disk.Status) float64 { return float64(s.Hedges) }),
		counter("hedged_reads_won_total", "Hedged reads that the other disks answered first.", func(s *disk.Status) float64 { return float64(s.HedgesWon) }),
		counter("reconstructed_reads_total", "Reads answered from parity.", func(s *disk.Status) float64 { return float64(s.Reconstructions) }),
	}
	slots := gauge("key_slots", "Key slots of the array by kind.", func(v float64) float64 { return v }, "kind")
	keys := []sample[*appliance]{
		gauge("key_epoch", "Key epoch of new records.", func(a *appliance) float64 { return float64(a.keys.CurrentEpoch()) }),
		gauge("key_epochs", "Key epochs that the keyring holds.", func(a *appliance) float64 { return float64(len(a.keys.Epochs())) }),
	}
	sendDisk, sendStore := diskMetrics(), storeMetrics()
	r.MustRegister(collector(func(ch chan<- prometheus.Metric) {
		app := open()
		index.send(ch, app)
		if app == nil {
			return
		}
		st := app.array.Status()
		for _, s := range arrayStates {
			state.send(ch, oneIf(s == st.State), s)
		}
		for _, m := range status {
			m.send(ch, &st)
		}
		for i := range st.Disks {
			sendDisk(ch, &st.Disks[i])
		}
		kinds := map[string]float64{}
		for _, s := range app.keys.Slots() {
			kinds[s.Kind]++
		}
		for kind, n := range kinds {
			slots.send(ch, n, kind)
		}
		for _, m := range keys {
			m.send(ch, app)
		}
		sendStore(ch, app)
	}))
}

// registerScrub exports what the scrub does and found.
func registerScrub(r prometheus.Registerer, open func() *appliance) {
	type st = *disk.ScrubStatus
	samples := []sample[st]{
		counter("scrub_bytes_total", "Bytes read by scrubs.", func(s st) float64 { return float64(s.Read) }),
		gauge("scrub_running", "1 while a scrub is under way and not paused.", func(s st) float64 { return oneIf(s.State == "running") }),
		gauge("scrub_progress_ratio", "How much of the array the scrub under way has behind it; 0 without one.", func(s st) float64 {
			return float64(s.Done) / float64(max(s.Total, 1))
		}),
		gauge("scrub_last_completed_timestamp_seconds", "When a scrub ended last, Unix time; 0 for never.", func(s st) float64 {
			if s.Last == nil {
				return 0
			}
			return float64(s.Last.Ended.UnixMilli()) / 1000
		}),
	}
	cells := counter("scrub_cells_total", "Cells, band headers and superblock copies that scrubs looked at, by what they found, and those that the start rewrote.",
		func(v float64) float64 { return v }, "result")
	r.MustRegister(collector(func(ch chan<- prometheus.Metric) {
		app := open()
		if app == nil {
			return
		}
		s := app.scrub.Status()
		for _, m := range samples {
			m.send(ch, &s)
		}
		for _, v := range disk.Verdicts() {
			cells.send(ch, float64(s.Found[v]), string(v))
		}
	}))
}

// diskMetrics returns what sends the metrics of one disk. They are labelled with its slot; the path, which may change, is in
// coffer_disk_info.
func diskMetrics() func(chan<- prometheus.Metric, *disk.DiskStatus) {
	type ds = *disk.DiskStatus
	samples := []sample[ds]{
		gauge("disk_size_bytes", "Size of the disk.", func(d ds) float64 { return float64(d.Size) }, "disk"),
		gauge("disk_rebuild_bands_left", "Bands that a rebuild or a drain of the disk still has to write or move; 0 without one.", func(d ds) float64 {
			left := 0
			for _, r := range []*disk.Rebuild{d.Rebuild, d.Drain} {
				if r != nil {
					left += r.Left
				}
			}
			return float64(left)
		}, "disk"),
		gauge("disk_free_extents", "Extents not yet taken.", func(d ds) float64 { return float64(d.Free) }, "disk"),
		gauge("disk_stuck_operations", "Operations that the kernel holds past their deadline.", func(d ds) float64 { return float64(d.Stats.Stuck) }, "disk"),
		counter("disk_reads_total", "Reads done.", func(d ds) float64 { return float64(d.Stats.Reads) }, "disk"),
		counter("disk_writes_total", "Writes done.", func(d ds) float64 { return float64(d.Stats.Writes) }, "disk"),
		counter("disk_flushes_total", "Flushes done.", func(d ds) float64 { return float64(d.Stats.Flushes) }, "disk"),
		counter("disk_read_bytes_total", "Bytes read.", func(d ds) float64 { return float64(d.Stats.ReadBytes) }, "disk"),
		counter("disk_written_bytes_total", "Bytes written.", func(d ds) float64 { return float64(d.Stats.WriteBytes) }, "disk"),
		counter("disk_read_errors_total", "Reads that failed.", func(d ds) float64 { return float64(d.Stats.ReadErrors) }, "disk"),
		counter("disk_write_errors_total", "Writes and flushes that failed.", func(d ds) float64 { return float64(d.Stats.WriteErrors) }, "disk"),
		counter("disk_late_reads_total", "Reads that took far longer than those of other disks.", func(d ds) float64 { return float64(d.Stats.Lates) }, "disk"),
		counter("disk_timeouts_total", "Failures that were missed deadlines.", func(d ds) float64 { return float64(d.Stats.Timeouts) }, "disk"),
	}
	one := func(v float64) float64 { return v }
	info := gauge("disk_info", "1, labelled with where the disk is.", one, "disk", "path", "id")
	state := gauge("disk_state", "1 for the state that the disk is in.", one, "disk", "state")
	reads := prometheus.NewDesc("coffer_disk_read_duration_seconds", "Time of a read.", []string{"disk"}, nil)
	writes := prometheus.NewDesc("coffer_disk_durable_write_duration_seconds", "Time of a durable write.", []string{"disk"}, nil)
	return func(ch chan<- prometheus.Metric, d *disk.DiskStatus) {
		slot := strconv.Itoa(d.Slot)
		for _, m := range samples {
			m.send(ch, d, slot)
		}
		info.send(ch, 1, slot, d.Path, d.ID)
		for _, s := range diskStates {
			state.send(ch, oneIf(s == d.State), slot, string(s))
		}
		r, w := &d.Stats.ReadLatency, &d.Stats.DurableLatency
		ch <- histogram(reads, r.Count, r.Sum, r.Buckets[:], slot)
		ch <- histogram(writes, w.Count, w.Sum, w.Buckets[:], slot)
	}
}

// histogram turns counts of durations below 2^i microseconds into a histogram. The last bucket has no upper bound; every other one
// but the first few is exported, which is enough to tell a slow disk.
func histogram(desc *prometheus.Desc, count uint64, sum time.Duration, buckets []uint64, labels ...string) prometheus.Metric {
	const first = 4 // 16 us
	cumulative := make(map[float64]uint64)
	var n uint64
	for i, b := range buckets[:len(buckets)-1] {
		n += b
		if i >= first && i%2 == 0 {
			cumulative[(time.Duration(1) << i * time.Microsecond).Seconds()] = n
		}
	}
	return prometheus.MustNewConstHistogram(desc, count, sum.Seconds(), cumulative, labels...)
}

// storeMetrics returns what sends the metrics of the object store.
func storeMetrics() func(chan<- prometheus.Metric, *appliance) {
	type st = *object.Stats
	samples := []sample[st]{
		gauge("store_buckets", "Buckets.", func(s st) float64 { return float64(s.Buckets) }),
		gauge("store_uncheckpointed_bytes", "Index changes since the last checkpoint, which a start would replay from the log.", func(s st) float64 { return float64(s.Uncheckpointed) }),
		counter("store_puts_total", "Objects stored by one call.", func(s st) float64 { return float64(s.Puts) }),
		counter("store_gets_total", "Objects opened for reading.", func(s st) float64 { return float64(s.Gets) }),
		counter("store_deletes_total", "Objects deleted.", func(s st) float64 { return float64(s.Deletes) }),
		counter("store_sealed_bytes_total", "Plaintext bytes sealed.", func(s st) float64 { return float64(s.SealedBytes) }),
		counter("store_opened_bytes_total", "Plaintext bytes opened.", func(s st) float64 { return float64(s.OpenedBytes) }),
		counter("store_repaired_segments_total", "Segments whose tag failed at first.", func(s st) float64 { return float64(s.Repairs) }),
		counter("store_corrupt_segments_total", "Segments beyond repair.", func(s st) float64 { return float64(s.Corrupt) }),
		counter("store_checkpoints_total", "Index checkpoints.", func(s st) float64 { return float64(s.Checkpoints) }),
		counter("store_checkpoint_failures_total", "Index checkpoints that failed.", func(s st) float64 { return float64(s.CheckpointFailures) }),
		gauge("store_live_bytes", "Space in bands that objects need.", func(s st) float64 { return float64(s.LiveBytes) }),
		gauge("store_shadow_bytes", "Live space of records that are kept only because of others that they made vanish.", func(s st) float64 { return float64(s.ShadowBytes) }),
		counter("compaction_bands_freed_total", "Bands that compaction gave back.", func(s st) float64 { return float64(s.BandsFreed) }),
		counter("compaction_moved_bytes_total", "Bytes of records and stripes that compaction wrote again.", func(s st) float64 { return float64(s.MovedBytes) }),
		counter("compaction_reclaimed_bytes_total", "Space of the bands given back.", func(s st) float64 { return float64(s.ReclaimedBytes) }),
		gauge("compaction_waiting_writers", "Requests that wait for compaction to make room.", func(s st) float64 { return float64(s.WaitingWriters) }),
		gauge("compaction_last_pass_timestamp_seconds", "When the last pass ended, Unix time; 0 for none yet.", func(s st) float64 {
			if s.LastCompaction.IsZero() {
				return 0
			}
			return float64(s.LastCompaction.UnixMilli()) / 1000
		}),
	}
	states := gauge("compaction_state", "1 for the state that compaction is in.", func(v float64) float64 { return v }, "state")
	amplification := gauge("write_amplification_ratio", "Bytes written to all disks, parity included, for each byte accepted from clients, since the start; 0 before the first.",
		func(v float64) float64 { return v })
	return func(ch chan<- prometheus.Metric, app *appliance) {
		stats := app.store.Stats()
		for _, m := range samples {
			m.send(ch, &stats)
		}
		c := app.compaction()
		for _, s := range compactionStates {
			states.send(ch, oneIf(s == c.State), s)
		}
		amplification.send(ch, c.Amplification)
	}
}

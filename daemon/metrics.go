package main

import (
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

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

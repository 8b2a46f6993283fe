//! Writes one metric at a time, with its samples.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::counters::{DURATION_BOUNDS_US, DurationCounts};

/// A sample's labels.
pub(super) type Labels<const N: usize> = [(&'static str, String); N];

/// The text that is being written.
pub(super) struct MetricsWriter<'e>(pub(super) DescriptorEncoder<'e>);

impl MetricsWriter<'_> {
    pub(super) fn counters<const N: usize, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, V)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        samples.into_iter().try_for_each(|(labels, value)| {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)
        })
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, _, f64>(&value, None)
    }

    pub(super) fn count(&mut self, name: &str, help: &str, counter: &AtomicU64) -> fmt::Result {
        self.counter(name, help, counter.load(Ordering::Relaxed))
    }

    pub(super) fn gauges<const N: usize, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, V)>,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        samples.into_iter().try_for_each(|(labels, value)| metric.encode_family(&labels)?.encode_gauge(&value))
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    pub(super) fn durations<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, DurationCounts)>,
    ) -> fmt::Result {
        let seconds = |us| Duration::from_micros(us).as_secs_f64();
        let mut metric = self.0.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
        samples.into_iter().try_for_each(|(labels, counts)| {
            let bounds = DURATION_BOUNDS_US.into_iter().map(seconds).chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(counts.buckets).collect();
            let (sum, count) = (seconds(counts.sum_us), counts.samples());
            if labels.is_empty() {
                return metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None);
            }
            metric.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
        })
    }
}

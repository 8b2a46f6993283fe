//! Writes one metric at a time, with its samples: as text, or for OpenTelemetry.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{
    CounterValueEncoder, DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, GaugeValueEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;

use crate::counters::{DURATION_BOUNDS_US, DurationCounts};
use crate::otel::{MetricFamily, MetricSamples, SampleNumber};

/// A sample's labels.
pub(super) type Labels<const N: usize> = [(&'static str, String); N];

/// Where metrics are written to.
pub(super) enum MetricsWriter<'e> {
    /// A text.
    Text(DescriptorEncoder<'e>),
    /// A list, from which they are sent.
    Families(&'e mut Vec<MetricFamily>),
}

impl MetricsWriter<'_> {
    pub(super) fn counters<const N: usize, V: Into<SampleNumber>>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, V)>,
    ) -> fmt::Result {
        self.write(name, help, MetricSamples::Counters(numbers(samples)))
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Into<SampleNumber>) -> fmt::Result {
        self.counters(name, help, [([], value)])
    }

    pub(super) fn count(&mut self, name: &str, help: &str, counter: &AtomicU64) -> fmt::Result {
        self.counter(name, help, counter.load(Ordering::Relaxed))
    }

    pub(super) fn gauges<const N: usize, V: Into<SampleNumber>>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, V)>,
    ) -> fmt::Result {
        self.write(name, help, MetricSamples::Gauges(numbers(samples)))
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Into<SampleNumber>) -> fmt::Result {
        self.gauges(name, help, [([], value)])
    }

    pub(super) fn durations<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels<N>, DurationCounts)>,
    ) -> fmt::Result {
        let samples = samples.into_iter().map(|(labels, counts)| (labels.into(), counts)).collect();
        self.write(name, help, MetricSamples::Durations(samples))
    }

    pub(super) fn info<const N: usize>(&mut self, name: &str, help: &str, labels: Labels<N>) -> fmt::Result {
        self.write(name, help, MetricSamples::Info(labels.into()))
    }

    fn write(&mut self, name: &str, help: &str, samples: MetricSamples) -> fmt::Result {
        match self {
            Self::Text(encoder) => text(encoder, name, help, &samples),
            Self::Families(families) => {
                families.push(MetricFamily { name: name.to_owned(), help: help.to_owned(), samples });
                Ok(())
            }
        }
    }
}

fn numbers<const N: usize, V: Into<SampleNumber>>(
    samples: impl IntoIterator<Item = (Labels<N>, V)>,
) -> Vec<(Vec<(&'static str, String)>, SampleNumber)> {
    samples.into_iter().map(|(labels, value)| (labels.into(), value.into())).collect()
}

fn text(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, samples: &MetricSamples) -> fmt::Result {
    match samples {
        MetricSamples::Counters(samples) => {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            samples.iter().try_for_each(|(labels, value)| match labels.is_empty() {
                true => metric.encode_counter::<NoLabelSet, _, f64>(value, None),
                false => metric.encode_family(labels)?.encode_counter::<NoLabelSet, _, f64>(value, None),
            })
        }
        MetricSamples::Gauges(samples) => {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            samples.iter().try_for_each(|(labels, value)| match labels.is_empty() {
                true => metric.encode_gauge(value),
                false => metric.encode_family(labels)?.encode_gauge(value),
            })
        }
        MetricSamples::Durations(samples) => {
            let seconds = |us| Duration::from_micros(us).as_secs_f64();
            let mut metric = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?;
            samples.iter().try_for_each(|(labels, counts)| {
                let bounds = DURATION_BOUNDS_US.into_iter().map(seconds).chain([f64::INFINITY]);
                let buckets: Vec<_> = bounds.zip(counts.buckets).collect();
                let (sum, count) = (seconds(counts.sum_us), counts.samples());
                match labels.is_empty() {
                    true => metric.encode_histogram::<NoLabelSet>(sum, count, &buckets, None),
                    false => metric.encode_family(labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None),
                }
            })
        }
        MetricSamples::Info(labels) => {
            encoder.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
        }
    }
}

impl EncodeCounterValue for SampleNumber {
    fn encode(&self, encoder: &mut CounterValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => EncodeCounterValue::encode(number, encoder),
            Self::Real(number) => EncodeCounterValue::encode(number, encoder),
        }
    }
}

impl EncodeGaugeValue for SampleNumber {
    fn encode(&self, encoder: &mut GaugeValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => EncodeGaugeValue::encode(number, encoder),
            Self::Real(number) => EncodeGaugeValue::encode(number, encoder),
        }
    }
}

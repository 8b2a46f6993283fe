//! Metrics, as they are read from the registry and as they are sent.

use std::time::Duration;

use super::messages::{
    HistogramPoint, KeyValue, MetricData, NumberPoint, OtlpGauge, OtlpHistogram, OtlpMetric, OtlpSum, PointNumber,
};
use super::span::text_attribute;
use crate::counters::{DURATION_BOUNDS_US, DurationCounts};

/// Counted since the process began, not since they were sent last.
const CUMULATIVE: i32 = 2;

/// A metric with all its samples.
#[derive(Clone, Debug)]
pub struct MetricFamily {
    /// Its name, without the suffixes that the text formats add.
    pub name: String,
    /// What it is.
    pub help: String,
    /// Its samples.
    pub samples: MetricSamples,
}

impl MetricFamily {
    pub(super) const fn is_empty(&self) -> bool {
        match &self.samples {
            MetricSamples::Counters(samples) | MetricSamples::Gauges(samples) => samples.is_empty(),
            MetricSamples::Durations(samples) => samples.is_empty(),
            MetricSamples::Info(_) => false,
        }
    }
}

/// Labels of a sample.
pub type SampleLabels = Vec<(&'static str, String)>;

/// The samples of a metric, by kind.
#[derive(Clone, Debug)]
pub enum MetricSamples {
    /// What only grows.
    Counters(Vec<(SampleLabels, SampleNumber)>),
    /// What goes up and down.
    Gauges(Vec<(SampleLabels, SampleNumber)>),
    /// Durations.
    Durations(Vec<(SampleLabels, DurationCounts)>),
    /// What does not change, in labels.
    Info(SampleLabels),
}

/// The number of a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum SampleNumber {
    /// A whole one.
    Whole(u64),
    /// Any other.
    Real(f64),
}

impl From<u64> for SampleNumber {
    fn from(number: u64) -> Self {
        Self::Whole(number)
    }
}

impl From<u32> for SampleNumber {
    fn from(number: u32) -> Self {
        Self::Whole(number.into())
    }
}

impl From<usize> for SampleNumber {
    fn from(number: usize) -> Self {
        Self::Whole(number as u64)
    }
}

impl From<f64> for SampleNumber {
    fn from(number: f64) -> Self {
        Self::Real(number)
    }
}

/// The period that samples are about, in nanoseconds since 1970.
#[derive(Clone, Copy, Debug)]
pub(super) struct SamplePeriod {
    pub(super) began_ns: u64,
    pub(super) now_ns: u64,
}

pub(super) fn metric(family: MetricFamily, period: SamplePeriod) -> OtlpMetric {
    let MetricFamily { mut name, help, samples } = family;
    let numbers = |samples: Vec<_>, period| samples.into_iter().map(|sample| number_point(sample, period)).collect();
    let (unit, data) = match samples {
        MetricSamples::Counters(samples) => {
            let data_points = numbers(samples, period);
            let sum = OtlpSum { data_points, aggregation_temporality: CUMULATIVE, is_monotonic: true };
            ("", MetricData::Sum(sum))
        }
        MetricSamples::Gauges(samples) => {
            let at_once = SamplePeriod { began_ns: 0, ..period };
            ("", MetricData::Gauge(OtlpGauge { data_points: numbers(samples, at_once) }))
        }
        MetricSamples::Durations(samples) => {
            let data_points = samples.into_iter().map(|sample| histogram_point(sample, period)).collect();
            ("s", MetricData::Histogram(OtlpHistogram { data_points, aggregation_temporality: CUMULATIVE }))
        }
        MetricSamples::Info(labels) => {
            name.push_str("_info");
            let at_once = SamplePeriod { began_ns: 0, ..period };
            ("", MetricData::Gauge(OtlpGauge { data_points: numbers(vec![(labels, 1_u64.into())], at_once) }))
        }
    };
    OtlpMetric { name, description: help, unit: unit.to_owned(), data: Some(data) }
}

fn number_point((labels, number): (SampleLabels, SampleNumber), period: SamplePeriod) -> NumberPoint {
    let value = match number {
        SampleNumber::Whole(number) => match i64::try_from(number) {
            Ok(number) => PointNumber::Integer(number),
            #[expect(clippy::cast_precision_loss, reason = "beyond 2^63 the digits at the end matter to nobody")]
            Err(_) => PointNumber::Double(number as f64),
        },
        SampleNumber::Real(number) => PointNumber::Double(number),
    };
    NumberPoint {
        attributes: attributes(labels),
        start_time_unix_nano: period.began_ns,
        time_unix_nano: period.now_ns,
        value: Some(value),
    }
}

fn histogram_point((labels, counts): (SampleLabels, DurationCounts), period: SamplePeriod) -> HistogramPoint {
    let seconds = |us| Duration::from_micros(us).as_secs_f64();
    HistogramPoint {
        attributes: attributes(labels),
        start_time_unix_nano: period.began_ns,
        time_unix_nano: period.now_ns,
        count: counts.samples(),
        sum: Some(seconds(counts.sum_us)),
        bucket_counts: counts.buckets.to_vec(),
        explicit_bounds: DURATION_BOUNDS_US.into_iter().map(seconds).collect(),
    }
}

fn attributes(labels: SampleLabels) -> Vec<KeyValue> {
    labels.into_iter().map(|(key, value)| text_attribute(key, &value)).collect()
}

//! Prometheus' text format, and OpenMetrics, which differs in few places.

use std::fmt::{Display, Write as _};

use crate::meter::Distribution;

/// Bounds of the buckets that are told, in microseconds: each is one of a [`Distribution`]'s.
const BOUNDS: [u64; 19] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000,
    500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000,
];

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Prometheus,
    OpenMetrics,
}

/// What a family of samples is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// A label's name and value.
pub(super) type Label<'a> = (&'static str, &'a str);

/// What is told, family by family.
pub(super) struct Exposition {
    text: String,
    format: Format,
    family: &'static str,
}

impl Format {
    /// The one to answer with.
    pub(super) fn accepted(accept: &str) -> Self {
        let open = accept.split(',').any(|range| {
            range.split(';').next().is_some_and(|t| t.trim() == "application/openmetrics-text")
        });
        if open { Self::OpenMetrics } else { Self::Prometheus }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

impl Exposition {
    pub(super) fn new(format: Format) -> Self {
        Self { text: String::with_capacity(32 * 1024), format, family: "" }
    }

    /// Begins a family; a counter's name is given without `_total`.
    pub(super) fn family(&mut self, name: &'static str, kind: Kind, help: &str) {
        self.family = name;
        let (kind, suffix) = match (kind, self.format) {
            (Kind::Counter, Format::Prometheus) => ("counter", "_total"),
            (Kind::Counter, Format::OpenMetrics) => ("counter", ""),
            (Kind::Gauge, _) => ("gauge", ""),
            (Kind::Histogram, _) => ("histogram", ""),
        };
        // Into a string nothing can fail; here and below.
        let _ = write!(self.text, "# HELP {name}{suffix} {help}\n# TYPE {name}{suffix} {kind}\n");
    }

    /// A family of one counter without labels.
    pub(super) fn counter(&mut self, name: &'static str, help: &str, value: impl Display) {
        self.family(name, Kind::Counter, help);
        self.sample("_total", &[], value);
    }

    /// A family of one gauge without labels.
    pub(super) fn gauge(&mut self, name: &'static str, help: &str, value: impl Display) {
        self.family(name, Kind::Gauge, help);
        self.sample("", &[], value);
    }

    /// One sample of the family that was begun last.
    pub(super) fn sample(&mut self, suffix: &str, labels: &[Label<'_>], value: impl Display) {
        self.text.push_str(self.family);
        self.text.push_str(suffix);
        for (index, (name, value)) in labels.iter().enumerate() {
            self.text.push(if index == 0 { '{' } else { ',' });
            let _ = write!(self.text, "{name}=\"");
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        if !labels.is_empty() {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// A histogram of the family that was begun last.
    pub(super) fn histogram(&mut self, label: Label<'_>, distribution: &Distribution) {
        for micros in BOUNDS {
            let count = distribution.up_to(std::time::Duration::from_micros(micros));
            let bound = format!("{:?}", micros as f64 / 1e6);
            self.sample("_bucket", &[label, ("le", &bound)], count);
        }
        let count = distribution.count();
        self.sample("_bucket", &[label, ("le", "+Inf")], count);
        self.sample("_sum", &[label], distribution.sum().as_secs_f64());
        self.sample("_count", &[label], count);
    }

    /// All of it.
    pub(super) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::meter::Histogram;

    #[test]
    fn both_formats_are_as_they_are_written() {
        let write = |format| {
            let mut all = Exposition::new(format);
            all.family("a", Kind::Counter, "Some.");
            all.sample("_total", &[("x", "q\"\\\n"), ("y", "z")], 1);
            all.finish()
        };
        let sample = "a_total{x=\"q\\\"\\\\\\n\",y=\"z\"} 1\n";
        assert_eq!(
            write(Format::Prometheus),
            format!("# HELP a_total Some.\n# TYPE a_total counter\n{sample}")
        );
        assert_eq!(
            write(Format::OpenMetrics),
            format!("# HELP a Some.\n# TYPE a counter\n{sample}# EOF\n")
        );
    }

    #[test]
    fn buckets_add_up() {
        let histogram = Histogram::default();
        histogram.add(Duration::from_micros(25));
        histogram.add(Duration::from_millis(3));
        histogram.add(Duration::from_secs(30));
        let mut all = Exposition::new(Format::Prometheus);
        all.family("a_seconds", Kind::Histogram, "Some.");
        all.histogram(("s", "t"), &histogram.read());
        let text = all.finish();
        for line in [
            "a_seconds_bucket{s=\"t\",le=\"1e-5\"} 0\n",
            "a_seconds_bucket{s=\"t\",le=\"2.5e-5\"} 1\n",
            "a_seconds_bucket{s=\"t\",le=\"0.0025\"} 1\n",
            "a_seconds_bucket{s=\"t\",le=\"0.005\"} 2\n",
            "a_seconds_bucket{s=\"t\",le=\"10.0\"} 2\n",
            "a_seconds_bucket{s=\"t\",le=\"+Inf\"} 3\n",
            "a_seconds_sum{s=\"t\"} 30.003025\n",
            "a_seconds_count{s=\"t\"} 3\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
    }

    #[test]
    fn openmetrics_is_for_those_who_ask_for_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.4";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        for other in ["", "*/*,", "text/html,application/xhtml+xml,"] {
            assert_eq!(Format::accepted(other), Format::Prometheus);
        }
    }
}

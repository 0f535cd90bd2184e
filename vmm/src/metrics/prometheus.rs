//! Prometheus's text form (exposition format 0.0.4): counters since the start, with the suffix that
//! its naming rules ask for. Devices of a kind are told apart by the label `id`.

use std::fmt::Write;

use super::{Kind, Sample};

/// The type of the text, for the answer's header.
pub(crate) const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

pub(crate) fn text(samples: &[Sample]) -> String {
    let mut text = format!(
        "# TYPE keeptime_build_info gauge\nkeeptime_build_info{{version=\"{}\"}} 1\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut last = String::new();
    for sample in samples {
        let prefix = sample
            .group
            .strip_prefix("keeptime_")
            .unwrap_or(sample.group);
        let (kind, suffix) = match sample.kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
        };
        let name = format!("keeptime_{prefix}_{}{suffix}", sample.field);
        // Writing to a string does not fail.
        if name != last {
            let _ = writeln!(text, "# TYPE {name} {kind}");
        }
        // In a configuration file an id may have any letter; none is a control character.
        let escaped = |id: &str| id.replace('\\', "\\\\").replace('"', "\\\"");
        let label = (sample.id.as_ref()).map(|id| format!("{{id=\"{}\"}}", escaped(id)));
        let label = label.unwrap_or_default();
        let _ = writeln!(text, "{name}{label} {}", sample.value);
        last = name;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_a_type_for_each_name_and_a_value_for_each_sample() {
        let text = text(&[
            Sample::counter("vcpu", "failures", 2),
            Sample::gauge("latencies_us", "pause_vm", 7),
            Sample::counter("keeptime_api", "evicted", 1),
            Sample::counter("net", "tx_count", 3).of("eth0"),
            Sample::counter("net", "tx_count", 0).of(r#"e"t\h1"#),
        ]);
        let lines: Vec<_> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "# TYPE keeptime_vcpu_failures_total counter",
                "keeptime_vcpu_failures_total 2",
                "# TYPE keeptime_latencies_us_pause_vm gauge",
                "keeptime_latencies_us_pause_vm 7",
                "# TYPE keeptime_api_evicted_total counter",
                "keeptime_api_evicted_total 1",
                "# TYPE keeptime_net_tx_count_total counter",
                "keeptime_net_tx_count_total{id=\"eth0\"} 3",
                r#"keeptime_net_tx_count_total{id="e\"t\\h1"} 0"#,
            ]
        );
    }
}

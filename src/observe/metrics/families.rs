//! Registers each metric with name, help and labels, so that tests can compare docs/metrics.md,
//! alert rules and dashboards with the registered metrics.

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use super::labels;

/// All registered metrics.
pub(super) struct Families {
    registry: Registry,
    #[cfg(test)]
    known: parking_lot::Mutex<Vec<Family>>,
}

/// The description of one metric, known before any event.
#[cfg(test)]
pub(super) struct Family {
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) meaning: String,
    pub(super) labels: Vec<String>,
}

// === impl Families ===

impl Families {
    pub(super) fn new() -> Self {
        Self {
            registry: Registry::new(),
            #[cfg(test)]
            known: parking_lot::Mutex::default(),
        }
    }

    /// If the only label is from a closed set, all series exist from the start. Otherwise `rate()`
    /// would miss the first event of a series.
    pub(super) fn counter(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let counter =
            self.register(IntCounterVec::new(opts(name, help), labels).expect("a valid name"));
        if let [label] = labels {
            for value in labels::closed(&full(name), label).unwrap_or_default() {
                drop(counter.with_label_values(&[value]));
            }
        }
        counter
    }

    pub(super) fn only_counter(&self, name: &str, help: &str) -> IntCounter {
        self.register(IntCounter::with_opts(opts(name, help)).expect("a valid name"))
    }

    pub(super) fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(opts(name, help), labels).expect("a valid name"))
    }

    pub(super) fn only_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(opts(name, help)).expect("a valid name"))
    }

    /// A gauge with fractional values.
    pub(super) fn fraction(&self, name: &str, help: &str, labels: &[&str]) -> GaugeVec {
        self.register(GaugeVec::new(opts(name, help), labels).expect("a valid name"))
    }

    pub(super) fn histogram(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: &[f64],
    ) -> HistogramVec {
        let opts = HistogramOpts {
            common_opts: opts(name, help),
            buckets: buckets.to_vec(),
        };
        self.register(HistogramVec::new(opts, labels).expect("a valid name"))
    }

    fn register<C: Collector + Clone + 'static>(&self, collector: C) -> C {
        self.add(Box::new(collector.clone()));
        collector
    }

    pub(super) fn add(&self, collector: Box<dyn Collector>) {
        #[cfg(test)]
        self.known.lock().extend(Family::all_of(&*collector));
        self.registry
            .register(collector)
            .expect("every metric is registered once");
    }

    /// All metrics in Prometheus' text format.
    pub(super) fn render(&self) -> String {
        let families = self.registry.gather();
        debug_assert_eq!(
            labels::outside_closed_sets(&families),
            [""; 0],
            "a label value is not in its closed set"
        );
        let mut text = String::new();
        TextEncoder::new()
            .encode_utf8(&families, &mut text)
            .expect("metrics that were registered can be encoded");
        text
    }

    /// The registered metrics, in order of registration.
    #[cfg(test)]
    pub(super) fn known(&self) -> Vec<Family> {
        std::mem::take(&mut *self.known.lock())
    }
}

pub(super) fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace("flowgate")
}

fn full(name: &str) -> String {
    format!("flowgate_{name}")
}

// === impl Family ===

#[cfg(test)]
impl Family {
    fn all_of(collector: &dyn Collector) -> Vec<Self> {
        let collected = collector.collect();
        let mut families = Vec::new();
        for desc in collector.desc() {
            let kind = collected
                .iter()
                .find(|family| family.name() == desc.fq_name)
                .map(|family| format!("{:?}", family.get_field_type()).to_lowercase());
            families.push(Self {
                name: desc.fq_name.clone(),
                kind: kind.unwrap_or_else(|| "gauge".to_owned()),
                meaning: desc.help.clone(),
                labels: desc.variable_labels.clone(),
            });
        }
        families
    }
}

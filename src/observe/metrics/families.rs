//! Which metrics are there? Each is registered here by name, meaning and labels, so that the manual, and what rules and
//! dashboards name, can be held against what was registered.

use prometheus::core::Collector;
use prometheus::{
    GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::labels;

/// All metrics that were registered.
pub(super) struct Families {
    registry: Registry,
    #[cfg(test)]
    known: parking_lot::Mutex<Vec<Family>>,
}

/// What is known of one metric before anything has happened.
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

    /// One whose only label is of a closed set has each of its values from the start: nobody sees a counter's first
    /// event if its series begins with it.
    pub(super) fn counter(&self, name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
        let counter =
            self.register(IntCounterVec::new(opts(name, help), labels).expect("a valid name"));
        if let [label] = labels {
            let values = labels::closed(&full(name), label).unwrap_or_default();
            values
                .iter()
                .for_each(|value| drop(counter.with_label_values(&[*value])));
        }
        counter
    }

    pub(super) fn gauge(&self, name: &str, help: &str, labels: &[&str]) -> IntGaugeVec {
        self.register(IntGaugeVec::new(opts(name, help), labels).expect("a valid name"))
    }

    pub(super) fn only_gauge(&self, name: &str, help: &str) -> IntGauge {
        self.register(IntGauge::with_opts(opts(name, help)).expect("a valid name"))
    }

    /// A gauge that takes fractions.
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

    /// Everything in Prometheus' text format.
    pub(super) fn render(&self) -> String {
        let families = self.registry.gather();
        debug_assert_eq!(
            labels::strange(&families),
            [""; 0],
            "a label has a value that is not of its closed set"
        );
        let mut text = String::new();
        TextEncoder::new()
            .encode_utf8(&families, &mut text)
            .expect("metrics that were registered can be encoded");
        text
    }

    /// What was registered, in that order.
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
        let kinds = collector.collect();
        let of = |name: &str| {
            kinds
                .iter()
                .find(|family| family.name() == name)
                .map(|family| family.get_field_type())
        };
        let family = |desc: &&prometheus::core::Desc| Self {
            name: desc.fq_name.clone(),
            kind: of(&desc.fq_name)
                .map_or("gauge".into(), |kind| format!("{kind:?}").to_lowercase()),
            meaning: desc.help.clone(),
            labels: desc.variable_labels.clone(),
        };
        collector.desc().iter().map(family).collect()
    }
}

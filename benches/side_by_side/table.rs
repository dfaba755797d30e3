//! Medians over the rounds, and ratios to nginx and to the floor.

use std::collections::BTreeMap;
use std::fmt;

/// The result of one contender in one round; times in microseconds.
#[derive(Clone, Copy, Default)]
pub(crate) struct Row {
    pub(crate) per_second: f64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    /// The median with one connection.
    pub(crate) alone_p50: f64,
    /// CPU time of the contender, per request.
    pub(crate) cpu: f64,
    pub(crate) rss: f64,
}

/// All results, by contender in order of appearance.
#[derive(Default)]
pub(crate) struct Table(BTreeMap<usize, (&'static str, Vec<Row>)>);

// === impl Table ===

impl Table {
    pub(crate) fn add(&mut self, name: &'static str, row: Row) {
        let known = self.0.values_mut().find(|(known, _)| *known == name);
        match known {
            Some((_, rows)) => rows.push(row),
            None => drop(self.0.insert(self.0.len(), (name, vec![row]))),
        }
    }

    fn median(&self, name: &str, field: fn(&Row) -> f64) -> Option<f64> {
        let (_, rows) = self.0.values().find(|(known, _)| *known == name)?;
        let mut values: Vec<_> = rows.iter().map(field).collect();
        values.sort_by(f64::total_cmp);
        Some(values[values.len() / 2])
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| | requests/s | p50 us | p99 us | CPU us | × nginx | × floor | added alone us | × nginx | RSS MiB |"
        )?;
        writeln!(f, "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")?;
        let direct = self
            .median("direct", |row| row.alone_p50)
            .unwrap_or_default();
        let added = |name: &str| {
            self.median(name, |row| row.alone_p50)
                .map(|p50| p50 - direct)
        };
        let ratio = |own: f64, other: Option<f64>| {
            other
                .filter(|other| own > 0.0 && *other > 0.0)
                .map(|other| format!("{:.2}", own / other))
                .unwrap_or_default()
        };
        for (name, _) in self.0.values() {
            let of = |field| self.median(name, field).unwrap_or_default();
            let cpu = of(|row| row.cpu);
            let alone = added(name).unwrap_or_default();
            writeln!(
                f,
                "| {name} | {:.0} | {:.0} | {:.0} | {cpu:.1} | {} | {} | {alone:.0} | {} | {:.0} |",
                of(|row| row.per_second),
                of(|row| row.p50),
                of(|row| row.p99),
                ratio(cpu, self.median("nginx proxy_pass", |row| row.cpu)),
                ratio(cpu, self.median("floor (hyper)", |row| row.cpu)),
                ratio(alone, added("nginx proxy_pass")),
                of(|row| row.rss),
            )?;
        }
        Ok(())
    }
}

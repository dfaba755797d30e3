//! The TOML file and the environment as one tree, in which each node has its origin.
//!
//! A tree rather than serde structs: serde stops at the first mistake and prints the value, while
//! Flowgate reports all mistakes and never shows what was written.

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::entries::Entries;
use super::mistakes::{FileId, Mistake, Origin};

/// A value and its origin. Has no `Debug`, because the value may be a misplaced secret.
pub(crate) struct Node {
    pub(crate) origin: Origin,
    pub(crate) item: Item,
}

/// A value as it was written.
pub(crate) enum Item {
    Scalar { text: String, style: Style },
    List(Vec<Node>),
    Table(Entries<Node>),
}

/// How a scalar was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A TOML string.
    Quoted,
    /// A TOML number, boolean or date.
    Bare,
    /// An environment variable, which has no type.
    Variable,
}

/// Maps byte offsets to lines, by bisection: a file has a node every few bytes.
struct Lines {
    file: FileId,
    /// The offset of each line feed.
    ends: Vec<usize>,
}

/// Parses a file. Returns all syntax errors.
pub(crate) fn parse(text: &str, file: FileId) -> Result<Node, Vec<Mistake>> {
    let lines = Lines::of(text, file);
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Node {
            origin: Origin::Nowhere,
            item: table(root.into_inner(), &lines),
        });
    }
    // `message` consists of fixed words. The error's `Display` would print the source line.
    let mistakes = errors
        .iter()
        .map(|error| Mistake {
            origin: error
                .span()
                .map_or_else(|| file.whole(), |span| lines.origin(span.start)),
            key: String::new(),
            expectation: format!("invalid TOML: {}", error.message()),
        })
        .collect();
    Err(mistakes)
}

fn table(table: DeTable<'_>, lines: &Lines) -> Item {
    let entries = table
        .into_iter()
        .map(|(key, value)| {
            // The line of the key, because a value may span many.
            let origin = lines.origin(key.span().start);
            let item = item(value.into_inner(), lines);
            (key.into_inner().into_owned(), Node { origin, item })
        })
        .collect();
    Item::Table(entries)
}

fn bare(text: String) -> Item {
    Item::Scalar {
        text,
        style: Style::Bare,
    }
}

fn item(value: DeValue<'_>, lines: &Lines) -> Item {
    match value {
        DeValue::String(text) => Item::Scalar {
            text: text.into_owned(),
            style: Style::Quoted,
        },
        DeValue::Integer(number) => bare(decimal(&number)),
        DeValue::Float(number) => bare(number.as_str().to_owned()),
        DeValue::Boolean(truth) => bare(truth.to_string()),
        DeValue::Datetime(date) => bare(date.to_string()),
        DeValue::Table(entries) => table(entries, lines),
        DeValue::Array(values) => {
            let nodes = values
                .into_iter()
                .map(|value: Spanned<DeValue<'_>>| Node {
                    origin: lines.origin(value.span().start),
                    item: item(value.into_inner(), lines),
                })
                .collect();
            Item::List(nodes)
        }
    }
}

/// Converts a number such as `0x10` or `1_000` to decimal. A number that is too large is kept as
/// it is, and is out of range for every key.
fn decimal(number: &DeInteger<'_>) -> String {
    i128::from_str_radix(number.as_str(), number.radix())
        .map_or_else(|_| number.to_string(), |n| n.to_string())
}

// === impl Lines ===

impl Lines {
    fn of(text: &str, file: FileId) -> Self {
        Self {
            file,
            ends: text.match_indices('\n').map(|(offset, _)| offset).collect(),
        }
    }

    fn origin(&self, offset: usize) -> Origin {
        self.file
            .line(1 + self.ends.partition_point(|end| *end < offset))
    }
}

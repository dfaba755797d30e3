//! What was written, and where? One tree for the TOML file and the environment, each node with its origin, before
//! anybody asks what it means. A tree instead of serde's structs, because serde stops at the first mistake and prints
//! the value; here all mistakes are found, and none shows what was written.

use toml::Spanned;
use toml::de::{DeInteger, DeTable, DeValue};

use super::entries::Entries;
use super::mistakes::{FileId, Mistake, Origin};

/// A value and where it stands. Has no `Debug`: it may hold a secret in the wrong place.
pub(crate) struct Node {
    pub(crate) origin: Origin,
    pub(crate) item: Item,
}

/// A value as it was written.
pub(crate) enum Item {
    Scalar { text: String, style: Style },
    List(Vec<Node>),
    Table(Entries),
}

/// How a scalar was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    /// A TOML string.
    Quoted,
    /// A TOML number, truth value or date.
    Bare,
    /// An environment variable, which has no types.
    Variable,
}

/// Which line an offset is on. Found by bisection: a file has a node for every few bytes.
struct Lines {
    file: FileId,
    /// The offset of each line's end.
    ends: Vec<usize>,
}

/// A file as a tree, or what is wrong with its syntax.
pub(crate) fn parse(text: &str, file: FileId) -> Result<Node, Vec<Mistake>> {
    let lines = Lines::of(text, file);
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(Node {
            origin: Origin::Nowhere,
            item: table(root.into_inner(), &lines),
        });
    }
    // The message alone is made of fixed words; the error's Display would print the source line.
    let mistake = |error: &toml::de::Error| Mistake {
        origin: error
            .span()
            .map_or_else(|| file.whole(), |span| lines.origin(span.start)),
        key: String::new(),
        expectation: format!("not valid TOML: {}", error.message()),
    };
    Err(errors.iter().map(mistake).collect())
}

fn table(table: DeTable<'_>, lines: &Lines) -> Item {
    let entry = |(key, value): (Spanned<_>, Spanned<DeValue<'_>>)| {
        // The line of the key: a value may span many.
        let origin = lines.origin(key.span().start);
        let key: std::borrow::Cow<'_, str> = key.into_inner();
        (
            key.into_owned(),
            Node {
                origin,
                item: item(value.into_inner(), lines),
            },
        )
    };
    Item::Table(table.into_iter().map(entry).collect())
}

fn item(value: DeValue<'_>, lines: &Lines) -> Item {
    let bare = |text: String| Item::Scalar {
        text,
        style: Style::Bare,
    };
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
            let node = |value: Spanned<DeValue<'_>>| {
                let origin = lines.origin(value.span().start);
                Node {
                    origin,
                    item: item(value.into_inner(), lines),
                }
            };
            Item::List(values.into_iter().map(node).collect())
        }
    }
}

/// `0x10` and `1_000` are numbers too. What fits nowhere stays as it is and is a wrong number wherever it is read.
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

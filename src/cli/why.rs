//! `flowgate why`: prints the way of a call that has ended, and why it waited. The running Flowgate
//! writes the texts.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;

use super::ask::{Admin, AdminAddress, ask};
use super::status::listener;
use crate::acs::encode::encode;
use crate::config::Source;

/// The options of `flowgate why`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Why {
    /// The request id of Flowgate, or of CAMS, as an answer, an error of an SDK or the log names it.
    pub request_id: String,
    /// The admin address, ip:port, name:port or unix:/path [default: listen.admin of the configuration].
    #[arg(long, value_name = "ADDRESS")]
    pub admin: Option<AdminAddress>,
    /// The file with the admin token [default: listen.admin_token of the configuration, unless
    /// --admin is given].
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Print everything as one line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// The fields of `/calls/<request id>` that are printed.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Call {
    request_id: String,
    age_seconds: u64,
    summary: String,
    steps: Vec<Step>,
    why: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Step {
    at_ms: u64,
    text: String,
}

// === impl Why ===

impl Why {
    /// Returns the address and token to use, as `flowgate status` does.
    pub fn admin(&self, source: &Source) -> Result<Admin, String> {
        listener(self.admin.as_ref(), self.token_file.as_deref(), source)
    }

    /// Queries the call and formats it.
    pub async fn query(&self, admin: &Admin) -> Result<String, String> {
        let path = format!("/calls/{}", encode(&self.request_id));
        let response = ask(admin, &path)
            .await
            .map_err(|error| format!("{error}: does Flowgate run there?"))?;
        let body = response.body.trim_end();
        match response.status.as_u16() {
            200 if self.json => Ok(format!("{body}\n")),
            200 => serde_json::from_str::<Call>(body)
                .map(|call| call.text())
                .map_err(|_| format!("{}{path} is not Flowgate's page", admin.address)),
            404 => Err(shown(body)),
            status => Err(format!(
                "{}/calls returned {status}: {} (--token-file)",
                admin.address,
                shown(body)
            )),
        }
    }
}

// === impl Call ===

impl Call {
    fn text(&self) -> String {
        let mut text = format!(
            "{}\n{}\nended {} s ago\n\n",
            shown(&self.request_id),
            shown(&self.summary),
            self.age_seconds
        );
        for Step { at_ms, text: what } in &self.steps {
            let seconds = *at_ms as f64 / 1000.0;
            writeln!(text, "{seconds:9.3} s  {}", shown(what))
                .expect("writing to a String cannot fail");
        }
        if !self.why.is_empty() {
            text.push_str("\nWhy it waited:\n");
        }
        for why in &self.why {
            writeln!(text, "- {}", shown(why)).expect("writing to a String cannot fail");
        }
        text
    }
}

/// Escapes what a terminal could not print or would obey; quotes stay.
fn shown(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\'' | '"' => shown.push(char),
            other => shown.extend(other.escape_debug()),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_printed_with_its_steps_and_reasons_and_without_control_characters() {
        let json = r#"{
            "request_id": "A-1", "age_seconds": 7, "summary": "acme / CreateFlow: ok.",
            "steps": [{ "at_ms": 0, "text": "arrived" }, { "at_ms": 12345, "text": "\u001b[31mended" }],
            "why": ["CAMS's \"answer\"."], "of_a_later_version": 1
        }"#;
        let call: Call = serde_json::from_str(json).unwrap();
        assert_eq!(
            call.text(),
            "A-1\nacme / CreateFlow: ok.\nended 7 s ago\n\n    0.000 s  arrived\n   12.345 s  \
             \\u{1b}[31mended\n\nWhy it waited:\n- CAMS's \"answer\".\n"
        );
    }
}

//! A customer of CAMS: an application with a stock Alibaba SDK. It sends CreateFlow calls as the
//! SDKs build them, signed with V3 or V1, each on its own connection. It shares no code with
//! Flowgate: only its endpoint differs between the demo's two runs.

use std::fmt::Write;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use time::UtcDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// One of Alibaba's two signature schemes.
#[derive(Clone, Copy)]
pub(crate) enum Scheme {
    /// ACS3-HMAC-SHA256, the default of the current SDKs.
    V3,
    /// HMAC-SHA1, used by the old SDKs and with `signature_algorithm="v2"`.
    V1,
}

/// An access key of the application.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    pub(crate) id: &'static str,
    pub(crate) secret: &'static str,
}

/// Parameter names and values, not encoded.
type Pairs = Vec<(&'static str, String)>;

/// Alibaba encodes all characters except `A-Z a-z 0-9 - _ . ~`.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// How long an application waits for its answer: an SDK's read time-out, raised as Flowgate's
/// README recommends.
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Calls CreateFlow at the endpoint and returns the `Code` of the answer.
pub(crate) async fn create_flow(
    endpoint: SocketAddr,
    key: Key,
    scheme: Scheme,
    name: &str,
) -> anyhow::Result<String> {
    let parameters = vec![
        ("FlowName", name.to_owned()),
        ("Categories", r#"["OTHER"]"#.to_owned()),
    ];
    let host = endpoint.to_string();
    let request = match scheme {
        Scheme::V3 => v3(&host, key, parameters)?,
        Scheme::V1 => v1(&host, key, parameters)?,
    };
    let body = timeout(READ_TIMEOUT, send(endpoint, request))
        .await
        .context("no answer in time")??;
    let answer: serde_json::Value =
        serde_json::from_slice(&body).context("the answer is not JSON")?;
    answer["Code"]
        .as_str()
        .map(str::to_owned)
        .context("the answer has no Code")
}

/// Sends a request on a new connection and returns the answer's body.
pub(crate) async fn send(to: SocketAddr, request: Request<Empty<Bytes>>) -> anyhow::Result<Bytes> {
    let (mut sender, connection) = handshake(TokioIo::new(TcpStream::connect(to).await?)).await?;
    let connection = tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let body = answer.into_body().collect().await?.to_bytes();
    connection.abort();
    Ok(body)
}

/// Alibaba's V3 signature: it covers the host and all x-acs headers; the parameters are in the
/// query.
fn v3(host: &str, key: Key, parameters: Pairs) -> anyhow::Result<Request<Empty<Bytes>>> {
    let query = joined(parameters);
    let hash = hex(&Sha256::digest([]));
    // Sorted by name, as the signature requires.
    let headers = [
        ("host", host),
        ("x-acs-action", "CreateFlow"),
        ("x-acs-content-sha256", &hash),
        ("x-acs-date", &now()?),
        ("x-acs-signature-nonce", &nonce()),
        ("x-acs-version", "2020-06-06"),
    ];
    let names = headers.map(|(name, _)| name).join(";");
    let lines: String = headers
        .iter()
        .map(|(name, value)| format!("{name}:{value}\n"))
        .collect();
    let canonical = format!("POST\n/\n{query}\n{lines}\n{names}\n{hash}");
    let to_sign = format!("ACS3-HMAC-SHA256\n{}", hex(&Sha256::digest(canonical)));
    let mut mac = Hmac::<Sha256>::new_from_slice(key.secret.as_bytes())?;
    mac.update(to_sign.as_bytes());
    let signature = hex(&mac.finalize().into_bytes());
    let authorization = format!(
        "ACS3-HMAC-SHA256 Credential={},SignedHeaders={names},Signature={signature}",
        key.id
    );
    let request = Request::post(format!("/?{query}")).header("authorization", authorization);
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    Ok(request.body(Empty::new())?)
}

/// Alibaba's V1 signature: it covers the method and all parameters, but no header.
fn v1(host: &str, key: Key, mut parameters: Pairs) -> anyhow::Result<Request<Empty<Bytes>>> {
    parameters.extend([
        ("Action", "CreateFlow".to_owned()),
        ("Version", "2020-06-06".to_owned()),
        ("Format", "json".to_owned()),
        ("AccessKeyId", key.id.to_owned()),
        ("SignatureMethod", "HMAC-SHA1".to_owned()),
        ("SignatureVersion", "1.0".to_owned()),
        ("SignatureNonce", nonce()),
        ("Timestamp", now()?),
    ]);
    let query = joined(parameters);
    let mut mac = Hmac::<Sha1>::new_from_slice(format!("{}&", key.secret).as_bytes())?;
    mac.update(format!("POST&%2F&{}", encode(&query)).as_bytes());
    let signature = STANDARD.encode(mac.finalize().into_bytes());
    let target = format!("/?{query}&Signature={}", encode(&signature));
    Ok(Request::post(target)
        .header("host", host)
        .body(Empty::new())?)
}

/// The canonical query of both signatures, which is also the query that is sent.
fn joined(mut parameters: Pairs) -> String {
    parameters.sort();
    let pairs: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    pairs.join("&")
}

fn encode(text: &str) -> String {
    utf8_percent_encode(text, ENCODED).to_string()
}

fn nonce() -> String {
    format!("{:032x}", fastrand::u128(..))
}

fn now() -> anyhow::Result<String> {
    Ok(UtcDateTime::now().truncate_to_second().format(&Rfc3339)?)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

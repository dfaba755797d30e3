//! A client at the level of bytes. It signs like the stock SDKs, with code of its own, and lets a
//! test change anything before or after the signature.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) const KEY: &str = "LTAI-managed-1";
pub(crate) const SECRET: &str = "managed-secret-1";

/// A request that can be changed and sent.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// A response.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

// === impl Call ===

impl Call {
    /// CreateFlow with V3, parameters in the query, as the newest Python SDK sends it.
    pub(crate) fn v3(host: &str, flow_name: &str) -> Self {
        Self::v3_with(
            host,
            &[("Categories", "[\"SIGN_UP\"]"), ("FlowName", flow_name)],
            |_| {},
            (KEY, SECRET),
        )
    }

    /// V3 with any parameters; `change` runs before signing.
    pub(crate) fn v3_with(
        host: &str,
        query: &[(&str, &str)],
        change: impl FnOnce(&mut Self),
        key: (&str, &str),
    ) -> Self {
        let mut call = Self::bare(host, query);
        call.push("x-acs-action", "CreateFlow");
        call.push("x-acs-version", "2020-06-06");
        call.push("x-acs-date", &timestamp(SystemTime::now()));
        call.push("x-acs-signature-nonce", &nonce());
        call.push("accept", "application/json");
        change(&mut call);
        call.sign_v3(key.0, key.1);
        call
    }

    /// CreateFlow with V1, common parameters in the query, business parameters in a form.
    pub(crate) fn v1(host: &str, flow_name: &str) -> Self {
        let form = [("Categories", "[\"SIGN_UP\"]"), ("FlowName", flow_name)];
        Self::v1_with(host, &form, |_| {}, (KEY, SECRET))
    }

    pub(crate) fn v1_with(
        host: &str,
        form: &[(&str, &str)],
        change: impl FnOnce(&mut Self),
        key: (&str, &str),
    ) -> Self {
        let common = [
            ("Action", "CreateFlow"),
            ("Version", "2020-06-06"),
            ("Format", "JSON"),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureVersion", "1.0"),
            ("AccessKeyId", key.0),
        ];
        let mut call = Self::bare(host, &common);
        call.query
            .push(("Timestamp".into(), timestamp(SystemTime::now())));
        call.query.push(("SignatureNonce".into(), nonce()));
        if !form.is_empty() {
            call.push("content-type", "application/x-www-form-urlencoded");
            let pairs: Vec<_> = form
                .iter()
                .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
                .collect();
            call.body = pairs.join("&").into_bytes();
        }
        change(&mut call);
        call.sign_v1(form, key.1);
        call
    }

    /// The same V1 call with everything in the form, the signature included, as pop-core and the SDKs
    /// for PHP and Ruby send a POST.
    pub(crate) fn in_form(mut self) -> Self {
        let form = std::mem::take(&mut self.query);
        let form = form
            .iter()
            .map(|(name, value)| format!("{}={}", encode(name), encode(value)));
        let before = String::from_utf8(self.body).expect("a form is text");
        let before = Some(before).filter(|before| !before.is_empty());
        self.body = before
            .into_iter()
            .chain(form)
            .collect::<Vec<_>>()
            .join("&")
            .into_bytes();
        if !self.headers.iter().any(|(name, _)| name == "content-type") {
            self.push("content-type", "application/x-www-form-urlencoded");
        }
        self
    }

    fn bare(host: &str, query: &[(&str, &str)]) -> Self {
        let query = query
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        let headers = vec![("host".into(), host.into())];
        Self {
            method: "POST".into(),
            path: "/".into(),
            query,
            headers,
            body: Vec::new(),
        }
    }

    pub(crate) fn push(&mut self, name: &str, value: &str) {
        self.headers.push((name.into(), value.into()));
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        let header = self
            .headers
            .iter_mut()
            .find(|(known, _)| known == name)
            .expect("a header to change");
        header.1 = value.into();
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        &self
            .headers
            .iter()
            .find(|(known, _)| known == name)
            .expect("a header")
            .1
    }

    fn sign_v3(&mut self, key: &str, secret: &str) {
        let hash = hex(&Sha256::digest(&self.body));
        self.push("x-acs-content-sha256", &hash);
        let mut signed = self.headers.clone();
        signed.sort();
        let names: Vec<_> = signed.iter().map(|(name, _)| name.as_str()).collect();
        let lines: String = signed
            .iter()
            .map(|(name, value)| format!("{name}:{}\n", value.trim()))
            .collect();
        let mut query = self.query.clone();
        query.sort();
        let query: Vec<_> = query
            .iter()
            .map(|(name, value)| format!("{name}={}", encode(value)))
            .collect();
        let names = names.join(";");
        let canonical = format!(
            "{}\n/\n{}\n{lines}\n{names}\n{hash}",
            self.method,
            query.join("&")
        );
        let to_sign = format!("ACS3-HMAC-SHA256\n{}", hex(&Sha256::digest(canonical)));
        let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(to_sign.as_bytes());
        let signature = hex(&mac.finalize().into_bytes());
        let authorization = format!(
            "ACS3-HMAC-SHA256 Credential={key},SignedHeaders={names},Signature={signature}"
        );
        self.push("authorization", &authorization);
    }

    fn sign_v1(&mut self, form: &[(&str, &str)], secret: &str) {
        let mut all = self.query.clone();
        all.extend(
            form.iter()
                .map(|(name, value)| ((*name).into(), (*value).into())),
        );
        all.sort();
        let all: Vec<_> = all
            .iter()
            .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
            .collect();
        let to_sign = format!("{}&%2F&{}", self.method, encode(&all.join("&")));
        let mut mac = Hmac::<Sha1>::new_from_slice(format!("{secret}&").as_bytes()).unwrap();
        mac.update(to_sign.as_bytes());
        self.query.push((
            "Signature".into(),
            STANDARD.encode(mac.finalize().into_bytes()),
        ));
    }

    pub(crate) fn target(&self) -> String {
        let query: Vec<_> = self
            .query
            .iter()
            .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
            .collect();
        if query.is_empty() {
            self.path.clone()
        } else {
            format!("{}?{}", self.path, query.join("&"))
        }
    }

    /// The request as bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target());
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self
            .headers
            .iter()
            .any(|(name, _)| name == "content-length" || name == "transfer-encoding")
        {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        [head.as_bytes(), b"\r\n", &self.body].concat()
    }

    /// Sends the request on a connection of its own and reads the response.
    pub(crate) async fn send(&self, to: SocketAddr) -> Reply {
        exchange(to, &self.bytes()).await.expect("an answer")
    }
}

// === impl Reply ===

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    pub(crate) fn code(&self) -> String {
        self.json()["Code"]
            .as_str()
            .unwrap_or_else(|| panic!("no Code: {self:?}"))
            .to_owned()
    }
}

/// Sends bytes and reads one response; `None` if the connection closes without one.
pub(crate) async fn exchange(to: SocketAddr, bytes: &[u8]) -> Option<Reply> {
    exchange_over(
        TcpStream::connect(to).await.expect("the proxy listens"),
        bytes,
    )
    .await
}

/// Like `exchange`; also `None` if the port refuses the connection.
pub(crate) async fn try_exchange(to: SocketAddr, bytes: &[u8]) -> Option<Reply> {
    exchange_over(TcpStream::connect(to).await.ok()?, bytes).await
}

async fn exchange_over(mut stream: TcpStream, bytes: &[u8]) -> Option<Reply> {
    // The server may stop reading a refused body.
    drop(stream.write_all(bytes).await);
    read_reply(&mut stream).await
}

/// Reads one response.
pub(crate) async fn read_reply(stream: &mut (impl AsyncRead + Unpin)) -> Option<Reply> {
    let mut seen = Vec::new();
    loop {
        if let Some(reply) = parse(&seen) {
            return Some(reply);
        }
        let mut buffer = [0; 16 * 1024];
        match tokio::time::timeout(Duration::from_secs(60), stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return None,
            Ok(Ok(read)) => seen.extend_from_slice(&buffer[..read]),
            Err(_) => panic!(
                "no answer within a minute; so far: {}",
                String::from_utf8_lossy(&seen)
            ),
        }
    }
}

fn parse(seen: &[u8]) -> Option<Reply> {
    let text = String::from_utf8_lossy(seen);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|(name, _)| name == "content-length")
        .and_then(|(_, value)| value.parse().ok());
    (body.len() >= length.unwrap_or(0)).then(|| Reply {
        status,
        headers,
        body: body.to_owned(),
    })
}

pub(crate) fn encode(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
            char::from(byte).to_string()
        }
        other => format!("%{other:02X}"),
    };
    text.bytes().map(byte).collect()
}

pub(crate) fn nonce() -> String {
    format!("{:032x}", fastrand::u128(..))
}

pub(crate) fn timestamp(at: SystemTime) -> String {
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .expect("after 1970")
        .as_secs();
    let days = seconds / 86_400;
    let rest = seconds % 86_400;
    // Days to a civil date, Howard Hinnant's algorithm.
    let z = days + 719_468;
    let era = z / 146_097;
    let doe = z % 146_097;
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

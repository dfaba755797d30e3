//! Who may see what? Health and metrics anybody who knows the listener's name; the other pages only whoever is on this
//! machine or shows the token. A name that is not ours comes from a browser that was lied to about where it leads.

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap};
use subtle::ConstantTimeEq;

use crate::config::{Bind, Listen};
use crate::names::{Names, authority, host_name};

/// What anybody may see, because machines that cannot keep a secret look at it.
const OPEN: [&str; 3] = ["/metrics", "/livez", "/readyz"];

/// Refuses with a status and a line that says what to do.
pub(super) fn check(listen: &Listen, path: &str, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
    named(listen, headers)?;
    let is_local = match &listen.admin {
        Bind::Tcp(address) => address.ip().to_canonical().is_loopback(),
        Bind::Unix(_) => true,
    };
    if is_local || OPEN.contains(&path) {
        return Ok(());
    }
    let Some(token) = &listen.admin_token else {
        let why = "Set listen.admin_token to see this page where listen.admin is not a loopback address.\n";
        return Err((StatusCode::FORBIDDEN, why));
    };
    let shown = headers.get(AUTHORIZATION).and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let is_it = shown.is_some_and(|shown| shown.ct_eq(token.expose().as_bytes()).into());
    let why = "This page is for who shows the token of listen.admin_token: Authorization: Bearer ...\n";
    if is_it { Ok(()) } else { Err((StatusCode::UNAUTHORIZED, why)) }
}

/// Whether the request was meant for this listener. A prober that speaks HTTP/1.0 names none.
fn named(listen: &Listen, headers: &HeaderMap) -> Result<(), (StatusCode, &'static str)> {
    let mut hosts = headers.get_all(HOST).into_iter();
    let Some(host) = hosts.next() else { return Ok(()) };
    if hosts.next().is_some() {
        return Err((StatusCode::BAD_REQUEST, "There are two Host headers.\n"));
    }
    let (names, host) = (Names::new(&listen.admin, &listen.names), String::from_utf8_lossy(host.as_bytes()));
    if names.contain(authority(&host)) || names.could_be(&host_name(&host)) {
        return Ok(());
    }
    let why =
        "Flowgate does not know this Host as its own: add it to listen.names if operators reach it by this name.\n";
    Err((StatusCode::MISDIRECTED_REQUEST, why))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;
    use crate::config;

    fn asked(env: &[(&str, &str)], path: &str, headers: &[(&'static str, &str)]) -> u16 {
        let env = env.iter().map(|(name, value)| (name.into(), value.into()));
        let listen = config::load(None, env).unwrap().config.listen;
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        check(&listen, path, &map).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn rule_31_only_known_names_are_answered() {
        let everywhere = ("FLOWGATE_LISTEN__ADMIN", "0.0.0.0:9900");
        let named = ("FLOWGATE_LISTEN__NAMES", "flowgate.internal");
        for (env, host, status) in [
            (&[][..], "127.0.0.1:9900", 200),
            (&[], "localhost:9900", 200),
            (&[], "rebound.example:9900", 421),
            (&[], "127.0.0.1:80", 421),
            (&[named], "flowgate.internal:9900", 200),
            (&[named], "flowgate.internal.example", 421),
            (&[everywhere], "10.1.2.3:9900", 200),
            (&[everywhere], "flowgate:9900", 421),
            (&[everywhere], "10.1.2.3.example", 421),
        ] {
            for path in ["/metrics", "/livez", "/lanes"] {
                let is_shut = env == [everywhere] && path == "/lanes" && status == 200;
                assert_eq!(asked(env, path, &[("host", host)]), if is_shut { 403 } else { status }, "{host} {path}");
            }
        }
        assert_eq!(asked(&[], "/livez", &[]), 200);
        assert_eq!(asked(&[], "/livez", &[("host", "127.0.0.1:9900"), ("host", "rebound.example")]), 400);
    }

    #[test]
    fn rule_32_beyond_loopback_a_token_is_shown() {
        let open = [("FLOWGATE_LISTEN__ADMIN", "0.0.0.0:9900")];
        let guarded = [open[0], ("FLOWGATE_LISTEN__ADMIN_TOKEN__ENV", "TOKEN"), ("TOKEN", "a-long-token")];
        let home = [guarded[1], guarded[2]];
        for path in ["/lanes", "/config", "/", "/nothing"] {
            assert_eq!(asked(&open, path, &[]), 403, "{path}");
            assert_eq!(asked(&guarded, path, &[]), 401, "{path}");
            for wrong in [
                "Bearer a-long-toke",
                "Bearer a-long-token2",
                "Bearer ",
                "bearer",
                "Basic a-long-token",
                "a-long-token",
            ] {
                assert_eq!(asked(&guarded, path, &[("authorization", wrong)]), 401, "{wrong}");
            }
            assert_eq!(asked(&guarded, path, &[("authorization", "Bearer a-long-token")]), 200);
            assert_eq!(asked(&home, path, &[]), 200, "on this machine");
        }
        assert_eq!(asked(&guarded, "/lanes?token=a-long-token", &[]), 401);
        assert_eq!(asked(&guarded, "/metrics", &[]), 200);
    }
}

//! Access control of the admin port. Health and metrics are open to any caller that uses one of the
//! listener's names. All other pages are open on a loopback address, and need the token elsewhere.
//! Operator actions always need the token. A request with an unknown name comes from a browser
//! under a DNS rebinding attack.

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap};
use subtle::ConstantTimeEq;

use crate::config::names::{Authority, Names, authority, host_name};
use crate::config::{Bind, Listen};

/// Paths without a token: endpoints for machines that cannot keep a secret, and the page's static
/// files, which show no data. A browser cannot send a token when it loads the page.
const OPEN: [&str; 11] = [
    "/metrics",
    "/livez",
    "/readyz",
    "/",
    "/call.html",
    "/page.css",
    "/page.js",
    "/call.js",
    "/callview.js",
    "/charts.js",
    "/common.js",
];

/// A status, and a line that says how to get access.
type AccessDenied = (StatusCode, &'static str);

/// Checks whether a request may read this path.
pub(super) fn check(listen: &Listen, path: &str, headers: &HeaderMap) -> Result<(), AccessDenied> {
    check_host(listen, headers)?;
    check_origin(path, headers)?;
    let is_local = match &listen.admin {
        Bind::Tcp(address) => address.ip().to_canonical().is_loopback(),
        Bind::Unix(_) => true,
    };
    if is_local || OPEN.contains(&path) {
        return Ok(());
    }
    check_token(listen, headers)
}

/// Checks whether a request that passed [`check`] may perform operator actions.
pub(super) fn check_operator(listen: &Listen, headers: &HeaderMap) -> Result<(), AccessDenied> {
    if !listen.admin_actions {
        let why = "Set listen.admin_actions = true to allow operator actions.\n";
        return Err((StatusCode::FORBIDDEN, why));
    }
    check_token(listen, headers)
}

fn check_token(listen: &Listen, headers: &HeaderMap) -> Result<(), AccessDenied> {
    let Some(token) = &listen.admin_token else {
        let why = "Set listen.admin_token to see this page where listen.admin is not a loopback address.\n";
        return Err((StatusCode::FORBIDDEN, why));
    };
    let shown = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let is_it = shown.is_some_and(|shown| shown.ct_eq(token.expose().as_bytes()).into());
    let why = "The token of listen.admin_token is required: Authorization: Bearer ...\n";
    if is_it {
        Ok(())
    } else {
        Err((StatusCode::UNAUTHORIZED, why))
    }
}

/// Rejects a `Host` that is not this listener's. HTTP/1.0 probes send none.
fn check_host(listen: &Listen, headers: &HeaderMap) -> Result<(), AccessDenied> {
    let mut hosts = headers.get_all(HOST).into_iter();
    let Some(host) = hosts.next() else {
        return Ok(());
    };
    if hosts.next().is_some() {
        return Err((StatusCode::BAD_REQUEST, "There are two Host headers.\n"));
    }
    let names = Names::new(&listen.admin, &listen.names, false);
    let host = String::from_utf8_lossy(host.as_bytes());
    let is_own = Authority::parse(authority(&host)).is_some_and(|host| names.contains(&host));
    if is_own || names.could_be(&host_name(&host)) {
        return Ok(());
    }
    let why =
        "This Host is not a name of this Flowgate: add it to listen.names if operators use it.\n";
    Err((StatusCode::MISDIRECTED_REQUEST, why))
}

/// Rejects requests that another site's page makes in an operator's browser. That page could not
/// read the response, but it would use up one of the event streams. Links from other sites are
/// allowed, except to `/events`, which occupies a stream while it is open. A frame also sends
/// `navigate`, so `sec-fetch-dest` must be `document`.
fn check_origin(path: &str, headers: &HeaderMap) -> Result<(), AccessDenied> {
    let is_framed = headers.contains_key("sec-fetch-dest")
        && !has_value(headers, "sec-fetch-dest", &["document"]);
    let is_link =
        has_value(headers, "sec-fetch-mode", &["navigate"]) && !is_framed && path != "/events";
    if has_value(headers, "sec-fetch-site", &["cross-site", "same-site"]) && !is_link {
        return Err((
            StatusCode::FORBIDDEN,
            "In a browser only Flowgate's own page may request this.\n",
        ));
    }
    Ok(())
}
fn has_value(headers: &HeaderMap, name: &str, values: &[&str]) -> bool {
    headers
        .get(name)
        .is_some_and(|sent| values.iter().any(|value| sent == value))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;
    use crate::config;

    fn status_of(env: &[(&str, &str)], path: &str, headers: &[(&'static str, &str)]) -> u16 {
        status_by(env, headers, |listen, map| check(listen, path, map))
    }

    fn status_by(
        env: &[(&str, &str)],
        headers: &[(&'static str, &str)],
        check: impl Fn(&Listen, &HeaderMap) -> Result<(), AccessDenied>,
    ) -> u16 {
        let env = env.iter().map(|(name, value)| (name.into(), value.into()));
        let listen = config::load(None, env).unwrap().config.listen;
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        check(&listen, &map).map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn only_the_listeners_names_are_accepted() {
        let everywhere = ("FLOWGATE_LISTEN__ADMIN", "0.0.0.0:9900");
        let check_host = ("FLOWGATE_LISTEN__NAMES", "flowgate.internal");
        for (env, host, status) in [
            (&[][..], "127.0.0.1:9900", 200),
            (&[], "localhost:9900", 200),
            (&[], "rebound.example:9900", 421),
            (&[], "127.0.0.1:80", 421),
            (&[check_host], "flowgate.internal:9900", 200),
            (&[check_host], "flowgate.internal.example", 421),
            (&[everywhere], "10.1.2.3:9900", 200),
            (&[everywhere], "flowgate:9900", 421),
            (&[everywhere], "10.1.2.3.example", 421),
        ] {
            for path in ["/metrics", "/livez", "/lanes"] {
                let is_shut = env == [everywhere] && path == "/lanes" && status == 200;
                assert_eq!(
                    status_of(env, path, &[("host", host)]),
                    if is_shut { 403 } else { status },
                    "{host} {path}"
                );
            }
        }
        assert_eq!(status_of(&[], "/livez", &[]), 200);
        assert_eq!(
            status_of(
                &[],
                "/livez",
                &[("host", "127.0.0.1:9900"), ("host", "rebound.example")]
            ),
            400
        );
    }

    #[test]
    fn a_token_is_required_beyond_loopback() {
        let open = [("FLOWGATE_LISTEN__ADMIN", "0.0.0.0:9900")];
        let guarded = [
            open[0],
            ("FLOWGATE_LISTEN__ADMIN_TOKEN__ENV", "TOKEN"),
            ("TOKEN", "a-long-token"),
        ];
        let home = [guarded[1], guarded[2]];
        for path in [
            "/lanes",
            "/history",
            "/calls",
            "/calls/A-1",
            "/config",
            "/events",
            "/lanes/pause",
            "/nothing",
        ] {
            assert_eq!(status_of(&open, path, &[]), 403, "{path}");
            assert_eq!(status_of(&guarded, path, &[]), 401, "{path}");
            for wrong in [
                "Bearer a-long-toke",
                "Bearer a-long-token2",
                "Bearer ",
                "bearer",
                "Basic a-long-token",
                "a-long-token",
            ] {
                assert_eq!(
                    status_of(&guarded, path, &[("authorization", wrong)]),
                    401,
                    "{wrong}"
                );
            }
            assert_eq!(
                status_of(&guarded, path, &[("authorization", "Bearer a-long-token")]),
                200
            );
            assert_eq!(status_of(&home, path, &[]), 200, "on this machine");
        }
        assert_eq!(status_of(&guarded, "/lanes?token=a-long-token", &[]), 401);
        for path in ["/metrics", "/", "/page.css", "/page.js"] {
            assert_eq!(status_of(&guarded, path, &[]), 200);
        }
    }

    #[test]
    fn operator_actions_need_the_token_on_loopback_too() {
        let token = [
            ("FLOWGATE_LISTEN__ADMIN_TOKEN__ENV", "TOKEN"),
            ("TOKEN", "a-long-token"),
        ];
        let on = [
            token[0],
            token[1],
            ("FLOWGATE_LISTEN__ADMIN_ACTIONS", "true"),
        ];
        let shown = ("authorization", "Bearer a-long-token");
        let wrong = ("authorization", "Bearer a-long-toke");
        assert_eq!(status_by(&token, &[shown], check_operator), 403);
        assert_eq!(status_by(&on, &[], check_operator), 401);
        assert_eq!(status_by(&on, &[wrong], check_operator), 401);
        assert_eq!(status_by(&on, &[shown], check_operator), 200);
    }

    #[test]
    fn a_page_of_another_site_cannot_request_events() {
        for (site, mode, status) in [
            ("same-origin", "cors", 200),
            ("none", "navigate", 200),
            ("cross-site", "navigate", 403),
            ("same-site", "navigate", 403),
            ("cross-site", "no-cors", 403),
            ("same-site", "cors", 403),
        ] {
            let headers = [("sec-fetch-site", site), ("sec-fetch-mode", mode)];
            assert_eq!(status_of(&[], "/events", &headers), status, "{site} {mode}");
        }
    }

    #[test]
    fn links_from_other_sites_are_allowed_and_frames_are_not() {
        for site in ["cross-site", "same-site"] {
            let navigates = [("sec-fetch-site", site), ("sec-fetch-mode", "navigate")];
            for path in ["/", "/lanes", "/metrics"] {
                assert_eq!(status_of(&[], path, &navigates), 200, "{path}");
            }
            for (dest, page) in [
                ("document", 200),
                ("iframe", 403),
                ("frame", 403),
                ("object", 403),
                ("embed", 403),
            ] {
                let headers = [navigates[0], navigates[1], ("sec-fetch-dest", dest)];
                assert_eq!(status_of(&[], "/lanes", &headers), page, "{site} {dest}");
                assert_eq!(status_of(&[], "/events", &headers), 403, "{site} {dest}");
            }
        }
        let own = [
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-mode", "cors"),
            ("sec-fetch-dest", "empty"),
        ];
        assert_eq!(status_of(&[], "/events", &own), 200);
    }
}

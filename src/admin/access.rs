//! Who may see what, and who may give orders? Health and metrics anybody who knows the listener's name; what else there is
//! to see only whoever is on this machine or shows the token; orders only who shows it, wherever. A name that is not ours
//! comes from a browser that was lied to about where it leads.

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap};
use subtle::ConstantTimeEq;

use crate::config::names::{Names, authority, host_name};
use crate::config::{Bind, Listen};

/// What anybody may see, because machines that cannot keep a secret look at it; and the page as it is in the binary, which
/// shows nothing before it has asked for the token: a browser cannot send one for it.
const OPEN: [&str; 6] = [
    "/metrics",
    "/livez",
    "/readyz",
    "/",
    "/page.css",
    "/page.js",
];

/// A status, and a line that says what to do.
type Refused = (StatusCode, &'static str);

/// Whether this may be seen.
pub(super) fn check(listen: &Listen, path: &str, headers: &HeaderMap) -> Result<(), Refused> {
    named(listen, headers)?;
    own_page(path, headers)?;
    let is_local = match &listen.admin {
        Bind::Tcp(address) => address.ip().to_canonical().is_loopback(),
        Bind::Unix(_) => true,
    };
    if is_local || OPEN.contains(&path) {
        return Ok(());
    }
    shows_token(listen, headers)
}

/// Whether orders may be given, by whoever may see.
pub(super) fn may_order(listen: &Listen, headers: &HeaderMap) -> Result<(), Refused> {
    if !listen.admin_actions {
        let why = "Set listen.admin_actions = true to have lanes paused, resumed and flushed from here.\n";
        return Err((StatusCode::FORBIDDEN, why));
    }
    shows_token(listen, headers)
}

fn shows_token(listen: &Listen, headers: &HeaderMap) -> Result<(), Refused> {
    let Some(token) = &listen.admin_token else {
        let why = "Set listen.admin_token to see this page where listen.admin is not a loopback address.\n";
        return Err((StatusCode::FORBIDDEN, why));
    };
    let shown = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let is_it = shown.is_some_and(|shown| shown.ct_eq(token.expose().as_bytes()).into());
    let why = "This is for who shows the token of listen.admin_token: Authorization: Bearer ...\n";
    if is_it {
        Ok(())
    } else {
        Err((StatusCode::UNAUTHORIZED, why))
    }
}

/// Whether the request was meant for this listener. A prober that speaks HTTP/1.0 names none.
fn named(listen: &Listen, headers: &HeaderMap) -> Result<(), Refused> {
    let mut hosts = headers.get_all(HOST).into_iter();
    let Some(host) = hosts.next() else {
        return Ok(());
    };
    if hosts.next().is_some() {
        return Err((StatusCode::BAD_REQUEST, "There are two Host headers.\n"));
    }
    let (names, host) = (
        Names::new(&listen.admin, &listen.names, false),
        String::from_utf8_lossy(host.as_bytes()),
    );
    if names.contain(authority(&host)) || names.could_be(&host_name(&host)) {
        return Ok(());
    }
    let why = "Flowgate does not know this Host as its own: add it to listen.names if operators reach it by this name.\n";
    Err((StatusCode::MISDIRECTED_REQUEST, why))
}

/// Whether no other page asks, in a browser of somebody who may. It could not read the answer, but it would take the
/// place of somebody who can. A link from elsewhere may lead here; a frame is no link, though it says that it navigates,
/// and nobody's link leads to what takes a place for as long as it stays.
fn own_page(path: &str, headers: &HeaderMap) -> Result<(), Refused> {
    let says = |name, values: &[&str]| {
        headers
            .get(name)
            .is_some_and(|said| values.iter().any(|value| said == value))
    };
    let is_framed =
        headers.contains_key("sec-fetch-dest") && !says("sec-fetch-dest", &["document"]);
    let is_link = says("sec-fetch-mode", &["navigate"]) && !is_framed && path != "/events";
    if says("sec-fetch-site", &["cross-site", "same-site"]) && !is_link {
        return Err((
            StatusCode::FORBIDDEN,
            "Only Flowgate's own page may ask for this in a browser.\n",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;
    use crate::config;

    fn asked(env: &[(&str, &str)], path: &str, headers: &[(&'static str, &str)]) -> u16 {
        judged(env, headers, |listen, map| check(listen, path, map))
    }

    fn judged(
        env: &[(&str, &str)],
        headers: &[(&'static str, &str)],
        check: impl Fn(&Listen, &HeaderMap) -> Result<(), Refused>,
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
                assert_eq!(
                    asked(env, path, &[("host", host)]),
                    if is_shut { 403 } else { status },
                    "{host} {path}"
                );
            }
        }
        assert_eq!(asked(&[], "/livez", &[]), 200);
        assert_eq!(
            asked(
                &[],
                "/livez",
                &[("host", "127.0.0.1:9900"), ("host", "rebound.example")]
            ),
            400
        );
    }

    #[test]
    fn rule_32_beyond_loopback_a_token_is_shown() {
        let open = [("FLOWGATE_LISTEN__ADMIN", "0.0.0.0:9900")];
        let guarded = [
            open[0],
            ("FLOWGATE_LISTEN__ADMIN_TOKEN__ENV", "TOKEN"),
            ("TOKEN", "a-long-token"),
        ];
        let home = [guarded[1], guarded[2]];
        for path in ["/lanes", "/config", "/events", "/lanes/pause", "/nothing"] {
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
                assert_eq!(
                    asked(&guarded, path, &[("authorization", wrong)]),
                    401,
                    "{wrong}"
                );
            }
            assert_eq!(
                asked(&guarded, path, &[("authorization", "Bearer a-long-token")]),
                200
            );
            assert_eq!(asked(&home, path, &[]), 200, "on this machine");
        }
        assert_eq!(asked(&guarded, "/lanes?token=a-long-token", &[]), 401);
        for path in ["/metrics", "/", "/page.css", "/page.js"] {
            assert_eq!(asked(&guarded, path, &[]), 200);
        }
    }

    #[test]
    fn rule_32_orders_need_the_token_on_this_machine_too() {
        let token = [
            ("FLOWGATE_LISTEN__ADMIN_TOKEN__ENV", "TOKEN"),
            ("TOKEN", "a-long-token"),
        ];
        let on = [
            token[0],
            token[1],
            ("FLOWGATE_LISTEN__ADMIN_ACTIONS", "true"),
        ];
        let asked = |env: &[(&str, &str)], headers: &[_]| judged(env, headers, may_order);
        let shown = ("authorization", "Bearer a-long-token");
        assert_eq!(asked(&token, &[shown]), 403);
        assert_eq!(asked(&on, &[]), 401);
        assert_eq!(asked(&on, &[("authorization", "Bearer a-long-toke")]), 401);
        assert_eq!(asked(&on, &[shown]), 200);
    }

    #[test]
    fn only_the_page_itself_asks_in_a_browser() {
        for (site, mode, status) in [
            ("same-origin", "cors", 200),
            ("none", "navigate", 200),
            ("cross-site", "navigate", 403),
            ("same-site", "navigate", 403),
            ("cross-site", "no-cors", 403),
            ("same-site", "cors", 403),
        ] {
            let headers = [("sec-fetch-site", site), ("sec-fetch-mode", mode)];
            assert_eq!(asked(&[], "/events", &headers), status, "{site} {mode}");
        }
    }

    #[test]
    fn a_link_from_elsewhere_leads_to_a_page_and_a_frame_does_not() {
        for site in ["cross-site", "same-site"] {
            let navigates = [("sec-fetch-site", site), ("sec-fetch-mode", "navigate")];
            for path in ["/", "/lanes", "/metrics"] {
                assert_eq!(asked(&[], path, &navigates), 200, "{path}");
            }
            for (dest, page) in [
                ("document", 200),
                ("iframe", 403),
                ("frame", 403),
                ("object", 403),
                ("embed", 403),
            ] {
                let headers = [navigates[0], navigates[1], ("sec-fetch-dest", dest)];
                assert_eq!(asked(&[], "/lanes", &headers), page, "{site} {dest}");
                assert_eq!(asked(&[], "/events", &headers), 403, "{site} {dest}");
            }
        }
        let own = [
            ("sec-fetch-site", "same-origin"),
            ("sec-fetch-mode", "cors"),
            ("sec-fetch-dest", "empty"),
        ];
        assert_eq!(asked(&[], "/events", &own), 200);
    }
}

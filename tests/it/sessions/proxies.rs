//! Variables that name proxies are not read: a proxy would see tokens and sessions in plaintext.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;

use super::cloud::{Cloud, create_as};
use crate::process::PROXY_VARIABLES;

/// A server that counts connections and closes them.
async fn recorder() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    tokio::spawn(async move {
        loop {
            drop(listener.accept().await);
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    (address, count)
}

#[tokio::test]
async fn requests_for_credentials_pass_no_proxy_of_the_environment() {
    let cloud = Cloud::start(None).await;
    let (proxy, connections) = recorder().await;
    let proxy = format!("http://{proxy}");
    let mut env: Vec<_> = PROXY_VARIABLES
        .into_iter()
        .map(|name| (name, proxy.as_str()))
        .collect();
    // Nothing is excepted.
    env.extend([("NO_PROXY", ""), ("no_proxy", "")]);
    let ecs = format!(
        "{{ ecs_role = {{ address = \"{}\" }} }}",
        cloud.metadata_address()
    );
    let accounts = [
        ("oidc", cloud.oidc()),
        ("ecs", ecs),
        ("uri", format!("{{ uri = \"{}\" }}", cloud.uri())),
    ];
    let process = cloud.process(&accounts, &env).await;
    for (id, _) in &accounts {
        let host = process.proxy.to_string();
        let call = create_as(&format!("team-{id}"), &host, id, "30s");
        assert_eq!(call.send(process.proxy).await.status, 200, "{id}");
    }
    assert_eq!(connections.load(Ordering::Relaxed), 0);
}

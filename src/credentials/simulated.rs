//! Every source against the simulator, which was written after Alibaba's documentation and shares no
//! code with this crate.

use std::time::{Duration, SystemTime};

use cams_sim::{MetadataSettings, Running, Settings, Sim, StsSettings, Verdict};
use rcgen::{CertificateParams, KeyPair};
use tokio::net::TcpListener;

use super::error::FailureKind;
use super::fetch;
use super::http::Roots;
use super::scripted;
use crate::config::{
    AccountCredentials, AssumeRole, Credentials, CredentialsUri, EcsRole, LoadedFrom, Oidc,
    SessionSource, StsEndpoint,
};
use crate::upstream::TlsRoots;

const EXTERNAL_ID: &str = "abc/1=2:3@x";

/// STS over TLS, and the metadata service, with the same keys and sessions.
struct Simulated {
    sts: Running,
    metadata: Running,
    roots: TlsRoots,
}

// === impl Simulated ===

impl Simulated {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let own = scripted::long_lived();
        let id = own.access_key_id.as_str();
        let mut settings = Settings {
            sts: StsSettings {
                oidc_tokens: vec!["a.b.c".to_owned()],
                ..StsSettings::default()
            },
            metadata: MetadataSettings {
                role: Some("flowgate-role".to_owned()),
                tokens_required: true,
                newline: true,
                ..MetadataSettings::default()
            },
            ..Settings::default().with_key(id, own.secret.expose(), "123456789012")
        };
        change(&mut settings);
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .unwrap()
            .self_signed(&key)
            .unwrap();
        let ca_file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca_file.path(), certificate.pem()).unwrap();
        let sim = Sim::new(settings);
        let sts = sim
            .clone()
            .listen_tls(
                TcpListener::bind("127.0.0.1:0").await.unwrap(),
                certificate.pem().as_bytes(),
                key.serialize_pem().as_bytes(),
            )
            .unwrap();
        let metadata = sim
            .metadata()
            .listen(TcpListener::bind("127.0.0.1:0").await.unwrap())
            .unwrap();
        Self {
            sts,
            metadata,
            roots: TlsRoots::load(Some(ca_file.path())).unwrap(),
        }
    }

    fn endpoint(&self) -> StsEndpoint {
        StsEndpoint {
            host: "127.0.0.1".to_owned(),
            port: self.sts.addr().port(),
        }
    }

    fn assume_role(&self, from: AccountCredentials) -> AssumeRole {
        AssumeRole {
            from: Box::new(from),
            ..scripted::assume_role(self.endpoint())
        }
    }

    async fn fetch(&self, source: SessionSource, assuming: Option<&Credentials>) -> Credentials {
        let fetcher = scripted::fetcher(source, Some(self.roots.clone()));
        let obtained = fetcher.fetch(assuming).await;
        obtained
            .map_err(|error| error.to_string())
            .unwrap()
            .credentials
    }

    async fn identity(&self, credentials: &Credentials) -> String {
        fetch::caller_identity(
            &self.endpoint(),
            &Roots::new(Some(self.roots.clone())),
            credentials,
        )
        .await
        .unwrap()
        .arn
    }
}

#[tokio::test]
async fn the_simulator_accepts_every_source_and_its_sessions() {
    let sim = Simulated::start(|_| {}).await;
    let own = scripted::long_lived();
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "a.b.c\n").unwrap();
    let mut role = sim.assume_role(AccountCredentials::Loaded(own.clone(), LoadedFrom::Keys));
    role.external_id = Some(EXTERNAL_ID.to_owned());
    role.role.policy = Some(r#"{"Version": "1", "Statement": []}"#.to_owned());
    role.role.duration = Some(Duration::from_secs(900));
    let oidc = SessionSource::Oidc(Oidc {
        provider_arn: "acs:ram::123456789012:oidc-provider/ack-rrsa-c1".to_owned(),
        token_file: token.path().to_owned(),
        role: scripted::role(sim.endpoint()),
    });
    let ecs_role = SessionSource::EcsRole(EcsRole {
        role: None,
        allow_v1: false,
        address: sim.metadata.addr(),
    });
    let uri = SessionSource::Uri(CredentialsUri {
        is_tls: false,
        host: "127.0.0.1".to_owned(),
        port: sim.metadata.addr().port(),
        target: "/credentials".parse().unwrap(),
    });
    let mut last = None;
    for (source, arn) in [
        (
            SessionSource::AssumeRole(role),
            "acs:ram::123456789012:assumed-role/flowgate/flowgate",
        ),
        (oidc, "acs:ram::123456789012:assumed-role/flowgate/flowgate"),
        (ecs_role, "assumed-role/flowgate-role/"),
        (uri, "assumed-role/flowgate-role/"),
    ] {
        let session = sim.fetch(source.clone(), Some(&own)).await;
        let found = sim.identity(&session).await;
        assert!(found.contains(arn), "{found}");
        last = Some(session);
    }
    // A chain: the last session assumes a role.
    let chained = SessionSource::AssumeRole(
        sim.assume_role(AccountCredentials::Loaded(own.clone(), LoadedFrom::Keys)),
    );
    let session = sim.fetch(chained, last.as_ref()).await;
    sim.identity(&session).await;
    sim.identity(&own).await;

    let requests = sim.sts.credential_requests();
    assert!(requests.len() >= 13, "{}", requests.len());
    for request in &requests {
        assert_eq!(request.verdict, Verdict::Accepted, "{request:?}");
        assert!(request.tokens_in_url().is_empty(), "{request:?}");
    }
}

#[tokio::test]
async fn a_wrong_clock_of_this_host_is_corrected() {
    for hours in [-3_i64, 3] {
        let by = Duration::from_secs(hours.unsigned_abs() * 3600);
        let now = SystemTime::now();
        let sim = Simulated::start(|settings| {
            settings.now = Some(if hours < 0 { now - by } else { now + by });
        })
        .await;
        let own = scripted::long_lived();
        let source = SessionSource::AssumeRole(
            sim.assume_role(AccountCredentials::Loaded(own.clone(), LoadedFrom::Keys)),
        );
        let fetcher = scripted::fetcher(source, Some(sim.roots.clone()));
        for _ in 0..2 {
            let lifetime = fetcher.fetch(Some(&own)).await.ok().unwrap().lifetime;
            assert!((3500..=3600).contains(&lifetime.as_secs()), "{lifetime:?}");
        }
        let verdicts = sim.sts.credential_requests();
        let refused = verdicts
            .iter()
            .filter(|request| request.verdict != Verdict::Accepted);
        assert_eq!((refused.count(), verdicts.len()), (1, 3));
    }
}

#[tokio::test]
async fn faults_of_sts_are_told_apart() {
    for (rule, kind) in [
        ("throttle,code=Throttling.User", FailureKind::Throttled),
        ("unavailable", FailureKind::ServiceError),
        ("redirect", FailureKind::BadAnswer),
        ("status=503", FailureKind::ServiceError),
        ("failed", FailureKind::ServiceError),
        ("refuse=NoPermission", FailureKind::Refused),
        (
            "refuse=InvalidSecurityToken.Expired,status=403",
            FailureKind::OldToken,
        ),
        ("garbage", FailureKind::BadAnswer),
        ("html", FailureKind::BadAnswer),
        ("empty", FailureKind::BadAnswer),
        ("half", FailureKind::BadAnswer),
        ("huge=70000", FailureKind::BadAnswer),
        ("expired", FailureKind::BadAnswer),
        ("no-expiration", FailureKind::BadAnswer),
        ("expiration=1893456000", FailureKind::BadAnswer),
        ("cut", FailureKind::Unreachable),
        ("close-before", FailureKind::Unreachable),
        ("close-after", FailureKind::Unreachable),
        ("reset", FailureKind::Unreachable),
    ] {
        let sim = Simulated::start(|settings| {
            settings.faults = vec![format!("next=1,action=sts,{rule}").parse().unwrap()];
        })
        .await;
        let own = scripted::long_lived();
        let source = SessionSource::AssumeRole(
            sim.assume_role(AccountCredentials::Loaded(own.clone(), LoadedFrom::Keys)),
        );
        let fetcher = scripted::fetcher(source, Some(sim.roots.clone()));
        let error = fetcher.fetch(Some(&own)).await.err().unwrap();
        assert_eq!(error.kind, kind, "{rule}: {error}");
        fetcher.fetch(Some(&own)).await.ok().unwrap();
    }
}

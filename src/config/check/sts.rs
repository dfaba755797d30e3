//! Checks `[sts]`: the endpoint of STS. What the table leaves open comes from the fields of a
//! profile, if the source is one, and then from the variables of Alibaba's SDKs; a mistake in them
//! is reported only if a source asks STS, because ACK sets them in pods that may not need it.

use super::upstream::{Authority, Endpoint, authority, endpoint};
use crate::config::mistakes::Origin;
use crate::config::read::{Field, KeyLocation, Reader, Section};
use crate::config::{Scheme, StsEndpoint};

/// The endpoint without a region. It is in mainland China.
const DEFAULT_HOST: &str = "sts.aliyuncs.com";

pub(super) const ENDPOINT_VARIABLE: &str = "ALIBABA_CLOUD_STS_ENDPOINT";
pub(super) const REGION_VARIABLE: &str = "ALIBABA_CLOUD_STS_REGION";
pub(super) const VPC_VARIABLE: &str = "ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED";

const ENDPOINT_FORM: &str = "a host with or without a port, such as \
                             sts.ap-southeast-1.aliyuncs.com; STS is asked over HTTPS only";
const REGION_FORM: &str =
    "a region such as ap-southeast-1: 2 to 40 lower-case letters, digits and '-'";
const NO_REGION: &str = "expected a region or an endpoint of STS too: the endpoint within a VPC \
                         has the region in its name";

/// The endpoint of STS.
pub(super) struct Sts {
    /// That of all sources, except for what a profile says and the table does not.
    endpoint: Result<StsEndpoint, VariableMistake>,
    written: Written,
}

/// What the table says. It precedes the fields of a profile, and those precede the variables.
#[derive(Default)]
struct Written {
    has_endpoint: bool,
    region: Option<String>,
    vpc: Option<bool>,
}

/// A mistake in a variable.
struct VariableMistake {
    name: &'static str,
    expectation: String,
}

/// What a profile says of its endpoint.
pub(super) struct OfProfile<'a> {
    pub(super) endpoint: Option<&'a str>,
    pub(super) region: Option<&'a str>,
    pub(super) vpc: bool,
}

/// Reads the section.
pub(super) fn check(mut section: Section<'_>) -> Sts {
    let reader = section.reader;
    let endpoint = section.key("endpoint").optional(sts_endpoint);
    let region = section
        .key("region")
        .optional(|key| key.text(REGION_FORM, region));
    let vpc_key = section.key("vpc");
    let vpc = vpc_key.optional(Field::flag);
    section.done();
    let (Some(endpoint), Some(region), Some(vpc)) = (endpoint, region, vpc) else {
        return Sts::mistaken();
    };
    let written = Written {
        has_endpoint: endpoint.is_some(),
        region,
        vpc,
    };
    let endpoint = match endpoint {
        Some(endpoint) => Ok(endpoint),
        None => resolve(reader, written.region.as_deref(), vpc),
    };
    if vpc == Some(true)
        && let Err(VariableMistake {
            name: VPC_VARIABLE, ..
        }) = endpoint
    {
        vpc_key.mistake(NO_REGION);
        return Sts::mistaken();
    }
    Sts { endpoint, written }
}

/// The endpoint by the region and `vpc` of the table or a profile, and by the variables for what is
/// absent. Such a region precedes an endpoint that the environment was given.
fn resolve(
    reader: &Reader,
    given_region: Option<&str>,
    vpc: Option<bool>,
) -> Result<StsEndpoint, VariableMistake> {
    if given_region.is_some() {
        return Ok(in_region(reader, given_region, vpc));
    }
    if let Some(text) = reader.environment.get(ENDPOINT_VARIABLE) {
        return host_and_port(text)
            .ok_or_else(|| VariableMistake::expected(ENDPOINT_VARIABLE, ENDPOINT_FORM));
    }
    let region = variable_region(reader)?;
    if region.is_none() && vpc.unwrap_or_else(|| reader.is_true(VPC_VARIABLE)) {
        return Err(VariableMistake {
            name: VPC_VARIABLE,
            expectation: format!(
                "{NO_REGION}: set {REGION_VARIABLE}, {ENDPOINT_VARIABLE}, sts.region or sts.endpoint"
            ),
        });
    }
    Ok(in_region(reader, region.as_deref(), vpc))
}

fn in_region(reader: &Reader, region: Option<&str>, vpc: Option<bool>) -> StsEndpoint {
    let vpc = vpc.unwrap_or_else(|| reader.is_true(VPC_VARIABLE));
    regional(region, vpc)
}

fn variable_region(reader: &Reader) -> Result<Option<String>, VariableMistake> {
    let Some(text) = reader.environment.get(REGION_VARIABLE) else {
        return Ok(None);
    };
    let region = region(text);
    region
        .map(Some)
        .ok_or_else(|| VariableMistake::expected(REGION_VARIABLE, REGION_FORM))
}

fn sts_endpoint(key: &Field<'_>) -> Option<StsEndpoint> {
    key.text(ENDPOINT_FORM, host_and_port)
}

/// Parses `host`, `host:port`, and both with `https://` before it.
fn host_and_port(text: &str) -> Option<StsEndpoint> {
    if text.contains("://") {
        let Endpoint {
            scheme, host, port, ..
        } = endpoint(text)?;
        return (scheme == Scheme::Https).then_some(StsEndpoint { host, port });
    }
    let Authority { host, port, .. } = authority(text)?;
    Some(StsEndpoint {
        host,
        port: port.unwrap_or(StsEndpoint::DEFAULT_PORT),
    })
}

fn region(text: &str) -> Option<String> {
    let is_region = (2..=40).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-');
    is_region.then(|| text.to_owned())
}

fn regional(region: Option<&str>, vpc: bool) -> StsEndpoint {
    let host = match (region, vpc) {
        (Some(region), true) => format!("sts-vpc.{region}.aliyuncs.com"),
        (Some(region), false) => format!("sts.{region}.aliyuncs.com"),
        (None, _) => DEFAULT_HOST.to_owned(),
    };
    StsEndpoint {
        host,
        port: StsEndpoint::DEFAULT_PORT,
    }
}

// === impl Sts ===

impl Sts {
    /// After a recorded mistake, so that no source uses the endpoint.
    fn mistaken() -> Self {
        Self {
            endpoint: Ok(regional(None, false)),
            written: Written {
                has_endpoint: true,
                ..Written::default()
            },
        }
    }

    /// The endpoint for a source. Records the mistake if there is none.
    pub(super) fn endpoint(&self, reader: &Reader) -> Option<StsEndpoint> {
        match &self.endpoint {
            Ok(endpoint) => Some(endpoint.clone()),
            Err(mistake) => {
                mistake.record(reader);
                None
            }
        }
    }

    /// The endpoint of a profile, whose fields count where the table says nothing. The outer error
    /// is what is expected of the fields; the inner `None` is a recorded mistake.
    pub(super) fn of_profile(
        &self,
        profile: &OfProfile<'_>,
        reader: &Reader,
    ) -> Result<Option<StsEndpoint>, String> {
        if self.written.has_endpoint {
            return Ok(self.endpoint(reader));
        }
        let vpc = self.written.vpc.or(profile.vpc.then_some(true));
        if let Some(region) = &self.written.region {
            return Ok(Some(in_region(reader, Some(region), vpc)));
        }
        if let Some(text) = profile.endpoint {
            let endpoint = host_and_port(text);
            return endpoint
                .map(Some)
                .ok_or_else(|| format!("sts_endpoint: expected {ENDPOINT_FORM}"));
        }
        if let Some(text) = profile.region {
            let region =
                region(text).ok_or_else(|| format!("sts_region: expected {REGION_FORM}"))?;
            return Ok(Some(in_region(reader, Some(&region), vpc)));
        }
        if !profile.vpc || self.written.vpc.is_some() {
            return Ok(self.endpoint(reader));
        }
        match resolve(reader, None, vpc) {
            Ok(endpoint) => Ok(Some(endpoint)),
            Err(VariableMistake {
                name: VPC_VARIABLE, ..
            }) => Err(format!(
                "enable_vpc: {NO_REGION}: set sts_region in the profile, or sts.region"
            )),
            Err(mistake) => {
                mistake.record(reader);
                Ok(None)
            }
        }
    }

    /// The endpoint of the whole process.
    pub(super) fn into_endpoint(self, reader: &Reader) -> StsEndpoint {
        self.endpoint.unwrap_or_else(|mistake| {
            reader.warn(format!(
                "{}: ignored, because it needs a correction and no source asks STS: {}",
                mistake.name, mistake.expectation
            ));
            regional(None, false)
        })
    }
}

// === impl VariableMistake ===

impl VariableMistake {
    fn expected(name: &'static str, form: &str) -> Self {
        Self {
            name,
            expectation: format!("expected {form}"),
        }
    }

    fn record(&self, reader: &Reader) {
        let place = KeyLocation {
            path: String::new(),
            origin: Origin::Variable(self.name.to_owned()),
        };
        reader.mistake(&place, self.expectation.clone());
    }
}

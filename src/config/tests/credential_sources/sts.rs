//! The endpoint of STS, from `[sts]` and from variables.

use super::*;

#[test]
fn the_endpoint_of_sts_is_written_or_made_of_a_region() {
    let sts = |text: &str, more: &[(&str, &str)]| {
        let set = [&oidc(), more].concat();
        let loaded = load_text(&format!("[sts]\n{text}"), &set)?;
        let host = loaded.config.sts.to_string();
        assert_eq!(role_of(source(Ok(loaded))).sts.to_string(), host);
        Ok::<_, String>(host)
    };
    let endpoint = (
        "ALIBABA_CLOUD_STS_ENDPOINT",
        "sts-vpc.cn-hangzhou.aliyuncs.com",
    );
    let region = ("ALIBABA_CLOUD_STS_REGION", "ap-southeast-1");
    let vpc = ("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", "TRUE");
    for (text, more, host) in [
        ("", &[][..], "sts.aliyuncs.com"),
        ("", &[region], "sts.ap-southeast-1.aliyuncs.com"),
        ("", &[region, vpc], "sts-vpc.ap-southeast-1.aliyuncs.com"),
        (
            "",
            &[endpoint, region, vpc],
            "sts-vpc.cn-hangzhou.aliyuncs.com",
        ),
        ("", &[endpoint, vpc], "sts-vpc.cn-hangzhou.aliyuncs.com"),
        (
            "region = 'eu-central-1'",
            &[endpoint, region, vpc],
            "sts-vpc.eu-central-1.aliyuncs.com",
        ),
        (
            "region = 'eu-central-1'\nvpc = false",
            &[vpc],
            "sts.eu-central-1.aliyuncs.com",
        ),
        (
            "vpc = true",
            &[region],
            "sts-vpc.ap-southeast-1.aliyuncs.com",
        ),
        (
            "vpc = true",
            &[endpoint],
            "sts-vpc.cn-hangzhou.aliyuncs.com",
        ),
        (
            "endpoint = 'sts.test:8443'\nregion = 'eu-central-1'",
            &[endpoint],
            "sts.test:8443",
        ),
        ("endpoint = 'https://STS.test:443/'", &[], "sts.test"),
        ("endpoint = '[::1]:9'", &[], "[::1]:9"),
    ] {
        assert_eq!(sts(text, more).as_deref(), Ok(host), "{text} {more:?}");
    }
    let form = "expected a host with or without a port, such as sts.ap-southeast-1.aliyuncs.com; \
                STS is asked over HTTPS only";
    for wrong in [
        "http://sts.aliyuncs.com",
        "sts.aliyuncs.com/x",
        "a@sts.test",
        "https://sts.test?x",
        "",
        "sts.test:0",
    ] {
        let mistake = sts(&format!("endpoint = '{wrong}'"), &[]).unwrap_err();
        assert_eq!(mistake, format!("2: sts.endpoint: {form}"), "{wrong}");
    }
    assert_eq!(
        sts(
            "",
            &[("ALIBABA_CLOUD_STS_ENDPOINT", "http://sts.aliyuncs.com")]
        )
        .unwrap_err(),
        format!("ALIBABA_CLOUD_STS_ENDPOINT: {form}")
    );
    let no_region = "expected a region or an endpoint of STS too: the endpoint within a VPC has \
                     the region in its name";
    assert_eq!(
        sts("vpc = true", &[]).unwrap_err(),
        format!("2: sts.vpc: {no_region}")
    );
    assert_eq!(
        sts("", &[vpc]).unwrap_err(),
        format!(
            "ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED: {no_region}: set ALIBABA_CLOUD_STS_REGION, \
             ALIBABA_CLOUD_STS_ENDPOINT, sts.region or sts.endpoint"
        )
    );
    let region = "expected a region such as ap-southeast-1: 2 to 40 lower-case letters, digits \
                  and '-'";
    for wrong in ["a", "AP-southeast-1", "a.b", "a/b", "-ab", &"a".repeat(41)] {
        let mistake = sts(&format!("region = '{wrong}'"), &[]).unwrap_err();
        assert_eq!(mistake, format!("2: sts.region: {region}"), "{wrong}");
    }
}

#[test]
fn a_mistake_in_a_variable_of_sts_counts_only_if_a_source_asks_sts() {
    let set = [
        ("ALIBABA_CLOUD_ECS_METADATA", "flowgate"),
        ("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED", "true"),
    ];
    let Loaded {
        config, warnings, ..
    } = variables(&set).unwrap();
    assert_eq!(config.sts.to_string(), "sts.aliyuncs.com");
    assert_eq!(warnings.len(), 2);
    assert!(
        warnings[1].starts_with("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED: ignored, because"),
        "{warnings:?}"
    );
}

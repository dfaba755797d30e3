//! Checks `ecs_role`: the metadata service of an ECS instance.

use std::net::SocketAddr;

use super::{SourceReader, table, variables};
use crate::config::read::{Field, KeyLocation, Section};
use crate::config::{EcsRole, SessionSource};

/// The key's path, in the table of which its defaults are.
const TABLE: &str = "accounts[].credentials.ecs_role";

pub(super) const ROLE_FORM: &str = "the name of a role: 1 to 64 letters, digits, '.', '_' or '-'";
const ADDRESS_FORM: &str = "100.100.100.200:80, or a loopback address such as 127.0.0.1:8081 for \
                            tests with a simulator";

/// What another source should be used for.
pub(super) const DISABLED: &str =
    "expected another source: ALIBABA_CLOUD_ECS_METADATA_DISABLED is true";

// === impl SourceReader ===

impl<'a> SourceReader<'a> {
    /// Reads `ecs_role`.
    pub(super) fn ecs_role(&self, key: Field<'a>) -> Option<SessionSource> {
        let place = key.place.clone();
        let form = "expected a table such as { role = \"flowgate\" }, or {}";
        self.ecs_role_table(&place, table(key, form)?)
    }

    /// Reads the source that the variables define.
    pub(super) fn ecs_role_of_variables(&self, place: &KeyLocation) -> Option<SessionSource> {
        self.ecs_role_table(place, Section::unwritten(self.reader, TABLE))
    }

    fn ecs_role_table(
        &self,
        place: &KeyLocation,
        mut section: Section<'a>,
    ) -> Option<SessionSource> {
        let role = section
            .key("role")
            .or_variable(variables::ECS_METADATA)
            .optional(|key| key.text(ROLE_FORM, role_name));
        let allow_v1 = section.key("allow_v1").flag();
        let address = section.key("address").text(ADDRESS_FORM, address);
        section.done();
        if self.metadata_is_disabled() {
            self.reader.mistake(place, DISABLED);
        }
        if let Some(allow_v1) = allow_v1 {
            self.warn_of_version(allow_v1);
        }
        Some(SessionSource::EcsRole(EcsRole {
            role: role?,
            allow_v1: allow_v1?,
            address: address?,
        }))
    }

    /// Warns once if Alibaba's variable for version 1 contradicts `allow_v1`.
    pub(super) fn warn_of_version(&self, allow_v1: bool) {
        let Some(text) = self.reader.environment.get(variables::IMDSV1_DISABLED) else {
            return;
        };
        let is_disabled = text.eq_ignore_ascii_case("true");
        if is_disabled == allow_v1 && !self.warned_of_version.replace(true) {
            self.reader.warn(format!(
                "{}: not read by Flowgate: only allow_v1 decides whether version 1 of the metadata \
                 service is used",
                variables::IMDSV1_DISABLED
            ));
        }
    }
}

/// The default source, for a role of this name.
pub(super) fn with_role(name: &str) -> Option<EcsRole> {
    let role = if name.is_empty() {
        None
    } else {
        Some(role_name(name)?)
    };
    Some(EcsRole {
        role,
        allow_v1: false,
        address: EcsRole::METADATA_SERVICE,
    })
}

fn role_name(text: &str) -> Option<String> {
    EcsRole::is_role_name(text).then(|| text.to_owned())
}

fn address(text: &str) -> Option<SocketAddr> {
    let address: SocketAddr = text.parse().ok()?;
    let is_known =
        address == EcsRole::METADATA_SERVICE || (address.ip().is_loopback() && address.port() != 0);
    is_known.then_some(address)
}
